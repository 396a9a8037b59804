"""Avalanche's example of EWC (examples/ewc_mnist.py), with our plugin in the place of its own."""

import argparse

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import InteractiveLogger
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from sklearn.datasets import load_digits
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.utils.data import TensorDataset

from engrams.strategies import EWCPlugin


def main(args):
    torch.manual_seed(args.seed)
    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    data = TensorDataset(x.float() / 16, y)
    data.targets = y.tolist()
    train, test = torch.utils.data.random_split(data, [1200, 597])
    for part in (train, test):
        part.targets = y[part.indices].tolist()
    benchmark = nc_benchmark(train, test, n_experiences=5, task_labels=False, seed=1234)
    model = SimpleMLP(num_classes=10, input_size=64, hidden_size=args.hidden_size)
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True), loss_metrics(epoch=True), forgetting_metrics(experience=True),
        loggers=[InteractiveLogger()],
    )  # fmt: skip
    plugin = EWCPlugin(args.ewc_lambda, args.consolidation, gamma=args.decay_factor)
    strategy = Naive(
        model=model, optimizer=SGD(model.parameters(), lr=args.learning_rate), criterion=CrossEntropyLoss(),
        train_mb_size=args.minibatch_size, train_epochs=args.epochs, plugins=[plugin], evaluator=evaluator,
    )  # fmt: skip
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    print("consolidated", plugin.consolidated)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--consolidation", default="online")
    parser.add_argument("--ewc_lambda", type=float, default=0.4)
    parser.add_argument("--decay_factor", type=float, default=0.9)
    parser.add_argument("--hidden_size", type=int, default=50)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--minibatch_size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
