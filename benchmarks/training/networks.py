"""The networks that learn, fitted to a scenario's output layer."""

from __future__ import annotations

from functools import singledispatch

import torch
from avalanche.benchmarks import CLScenario
from avalanche.models import IncrementalClassifier, SimpleMLP, as_multitask
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from engrams.benchmarks.protocols.schema import CNN, MLP, Network


def make_network(network: Network, scenario: str, benchmark: CLScenario) -> nn.Module:
    """A network with the output layer that the scenario calls for.

    Args:
        network: the layers before it.
        scenario: ``task``: one head an experience, chosen by the task label. ``domain``: one head, of fixed size.
            ``class``: one head that grows with the classes met; units of classes not met yet are masked.
        benchmark: its first experience gives the shape of the input and the number of classes.

    Returns:
        A module whose head is called ``classifier``, on inputs [N, ...] of the benchmark's shape.
    """
    first = benchmark.train_stream[0]
    classes = len(first.classes_in_this_experience)
    module = _build(network, first.dataset[0][0].shape, classes)
    if scenario == "task":
        return as_multitask(module, "classifier")
    if scenario == "class":
        in_features = module.get_submodule("classifier").in_features
        module.classifier = IncrementalClassifier(in_features, initial_out_features=classes)
    return module


@singledispatch
def _build(network: Network, shape: torch.Size, classes: int) -> nn.Module:
    """A module on inputs [N, *shape] whose output layer is an nn.Linear called ``classifier``."""
    raise NotImplementedError(type(network))


@_build.register
def _(network: MLP, shape, classes):
    """ReLU, no dropout, PyTorch's default initialisation."""
    return SimpleMLP(
        num_classes=classes,
        input_size=shape.numel(),
        hidden_size=network.hidden_size,
        hidden_layers=network.hidden_layers,
        drop_rate=0,
    )


@_build.register
def _(network: CNN, shape, classes):
    return ConvolutionalNetwork(network, shape, classes)


class ConvolutionalNetwork(nn.Module):
    """torchvision's VGG layers, then fully connected ones.

    No batch norm and no dropout: a penalty's importances are statistics of single samples. Convolutions are initialised
    as torchvision's VGG initialises them, linear layers as PyTorch does. Every layer has a deterministic gradient on a
    GPU too (an adaptive max-pooling, as in Avalanche's SimpleCNN, has none).
    """

    def __init__(self, network: CNN, shape: torch.Size, classes: int):
        """
        Args:
            network: its layers.
            shape: of an input, [channels, height, width].
            classes: outputs.
        """
        super().__init__()
        self.features = make_layers(list(network.convolutions))
        if shape[0] != 3:  # what make_layers takes for granted
            self.features[0] = nn.Conv2d(shape[0], self.features[0].out_channels, kernel_size=3, padding=1)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.constant_(layer.get_parameter("bias"), 0)
        with torch.no_grad():
            size = self.features(torch.zeros(1, *shape)).numel()
        self.features.append(nn.Flatten())
        for hidden in network.hidden_sizes:
            self.features.extend([nn.Linear(size, hidden), nn.ReLU(inplace=True)])
            size = hidden
        self.classifier = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N, classes] of inputs [N, channels, height, width]."""
        return self.classifier(self.features(x))
