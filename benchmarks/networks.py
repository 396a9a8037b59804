"""The networks that learn, fitted to a scenario's output layer."""

from __future__ import annotations

from avalanche.benchmarks import CLScenario
from avalanche.models import IncrementalClassifier, SimpleMLP, as_multitask
from torch import nn

from benchmarks.protocol import Network


def make_network(network: Network, scenario: str, benchmark: CLScenario) -> nn.Module:
    """A multi-layer perceptron with the output layer that the scenario calls for.

    Args:
        network: hidden layers and their size; ReLU, no dropout, PyTorch's default initialisation.
        scenario: ``task``: one head an experience, chosen by the task label. ``domain``: one head, of fixed size.
            ``class``: one head that grows with the classes met; units of classes not met yet are masked.
        benchmark: its first experience gives the input size and the number of classes.

    Returns:
        A module whose head is called ``classifier``, on inputs [N, ...] of any shape.
    """
    first = benchmark.train_stream[0]
    classes = len(first.classes_in_this_experience)
    mlp = SimpleMLP(
        num_classes=classes,
        input_size=first.dataset[0][0].numel(),
        hidden_size=network.hidden_size,
        hidden_layers=network.hidden_layers,
        drop_rate=0,
    )
    if scenario == "task":
        return as_multitask(mlp, "classifier")
    if scenario == "class":
        mlp.classifier = IncrementalClassifier(network.hidden_size, initial_out_features=classes)
    return mlp
