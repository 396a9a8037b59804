"""The networks and their heads."""

import pytest
import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from avalanche.models.utils import avalanche_forward
from torch import nn

from engrams.benchmarks.data.datasets import ImageData
from engrams.benchmarks.data.streams import make_benchmark
from engrams.benchmarks.protocols import registry as protocol
from engrams.benchmarks.protocols.schema import CNN, MLP, SplitStream
from engrams.benchmarks.training.networks import ConvolutionalNetwork, make_network
from engrams.strategies import per_sample_gradients

SMALL = CNN(kind="cnn", convolutions=(4, "M", 6, "M"), hidden_sizes=(10,))


def benchmark_of(channels, size, scenario):
    torch.manual_seed(0)
    y = torch.arange(24) % 4
    x = torch.rand(24, channels, size, size)
    stream = SplitStream(
        kind="split", scenarios=[scenario], classes_per_experience=2, class_order="in-order", validation_fraction=0.5
    )
    return make_benchmark(ImageData(x, y, x, y), stream, scenario, "test", seed=0)


@pytest.mark.parametrize("network", [SMALL, MLP(hidden_size=7, hidden_layers=2)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_every_network_has_the_head_of_its_scenario(network, channels, scenario):
    benchmark = benchmark_of(channels, 8, scenario)
    model = make_network(network, scenario, benchmark)
    head = {"task": MultiHeadClassifier, "domain": nn.Linear, "class": IncrementalClassifier}[scenario]
    assert type(model.classifier) is head
    for experience in benchmark.train_stream:
        for module in model.modules():
            if hasattr(module, "adaptation") and module is not model:
                module.adaptation(experience)
        if scenario == "task":
            model.adaptation(experience)
        x, _, tasks = experience.dataset[0]
        outputs = avalanche_forward(model, x[None].repeat(5, 1, 1, 1), torch.full((5,), tasks))
        assert outputs.shape[0] == 5
        assert outputs.shape[1] >= 2
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert any(name == "classifier" for name in names)


@pytest.mark.parametrize(
    ("name", "size", "flat", "last"),
    [("split-cifar10/task", 32, 64 * 8 * 8, 512), ("split-tiny-imagenet", 64, 2048, 128)],
)
def test_the_protocols_networks_are_those_of_their_sources(name, size, flat, last):
    network = protocol.get(name).network
    model = ConvolutionalNetwork(network, torch.Size((3, size, size)), 20)
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == [flat, *network.hidden_sizes]
    assert model.classifier.in_features == last
    assert [layer.out_channels for layer in model.features if isinstance(layer, nn.Conv2d)] == [
        width for width in network.convolutions if width != "M"
    ]
    assert not any(isinstance(layer, nn.BatchNorm2d | nn.Dropout) for layer in model.modules())
    assert model(torch.rand(2, 3, size, size)).shape == (2, 20)


def test_importances_of_a_convolutional_network_take_the_short_cut():
    torch.manual_seed(0)
    model = ConvolutionalNetwork(SMALL, torch.Size((3, 8, 8)), 2)
    x = torch.rand(6, 3, 8, 8)
    layers = per_sample_gradients.short_cut_layers(model, x, 0)
    assert layers is not None
    assert len(layers) == 4
