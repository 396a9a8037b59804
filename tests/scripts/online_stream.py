"""Avalanche's example of an online stream (examples/online_naive.py), with two penalties; and every 45 samples."""

import torch
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.evaluation.metrics import loss_metrics
from avalanche.logging import InteractiveLogger
from avalanche.models import SimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch.utils.data import TensorDataset

from engrams.strategies import EWCPlugin, MASPlugin

torch.manual_seed(0)
tasks = [make_avalanche_dataset(TensorDataset(torch.randn(60, 8), torch.arange(60) % 2)) for _ in range(3)]
benchmark = benchmark_from_datasets(train=tasks, test=tasks)
for every in (None, 45):
    model = SimpleMLP(num_classes=2, input_size=8, hidden_size=10)
    plugins = [EWCPlugin(1.0, consolidate_every=every), MASPlugin(0.1, consolidate_every=every)]
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=10,
        plugins=plugins,
        evaluator=EvaluationPlugin(loss_metrics(experience=True), loggers=[InteractiveLogger()]),
    )
    for experience in split_online_stream(benchmark.train_stream, experience_size=10):
        strategy.train(experience, num_workers=0)
    strategy.eval(benchmark.test_stream)
    print("consolidated", *(plugin.consolidated for plugin in plugins))
