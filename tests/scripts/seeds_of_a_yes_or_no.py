"""Error bars over seeds, the plugin made once outside of the loop; one logit, and a model that is compiled."""

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation.metrics import loss_metrics
from avalanche.logging import BaseLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

from engrams.strategies import EWCPlugin


def task(direction):
    x = torch.randn(200, 20)
    return AvalancheDataset(TensorDataset(x, (x @ direction > 0).float()[:, None]))


torch.manual_seed(0)
tasks = [task(torch.randn(20)) for _ in range(2)]
ends = []
shared = EWCPlugin(ewc_lambda=5.0)
for plugin in (shared, shared, EWCPlugin(ewc_lambda=5.0)):
    torch.manual_seed(len(ends))
    if plugin is not shared:
        torch.manual_seed(1)
    model = torch.compile(nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 1)), backend="eager")
    strategy = Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), criterion=nn.BCEWithLogitsLoss(),
        train_mb_size=32, train_epochs=2, plugins=[plugin],
        evaluator=EvaluationPlugin(loss_metrics(experience=True), loggers=[BaseLogger()]),
    )  # fmt: skip
    for experience in benchmark_from_datasets(train=tasks).train_stream:
        strategy.train(experience)
    ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
assert torch.equal(ends[1], ends[2]), "the second seed is what a plugin of its own gives"
assert not torch.equal(ends[0], ends[1])
assert max(f.max().item() for f in shared.importances.values()) > 0.01
print("consolidated", shared.consolidated)
