"""Avalanche's example of multi-head models (examples/multihead.py), with MAS, which reads the stream of tests."""

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import InteractiveLogger
from avalanche.models import SimpleMLP, as_multitask
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from engrams.strategies import MASPlugin

torch.manual_seed(0)
x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
data = TensorDataset(x.float()[:600] / 16, y[:600])
data.targets = y[:600].tolist()
benchmark = nc_benchmark(data, data, n_experiences=5, task_labels=True, class_ids_from_zero_in_each_exp=True)
model = as_multitask(SimpleMLP(input_size=64, hidden_size=20), "classifier")
plugin = MASPlugin(1.0, importance_data=benchmark.test_stream, exclude="classifier.*")
strategy = Naive(
    model=model, optimizer=torch.optim.Adam(model.parameters()), criterion=torch.nn.CrossEntropyLoss(),
    train_mb_size=32, plugins=[plugin],
    evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[InteractiveLogger()]),
)  # fmt: skip
for experience in benchmark.train_stream:
    strategy.train(experience)
    strategy.eval(benchmark.test_stream)
assert not any(name.startswith("classifier") for name in plugin.importances)
print("consolidated", plugin.consolidated)
