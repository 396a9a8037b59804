"""The networks and their heads."""

import pytest
import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, SlimResNet18
from avalanche.models.utils import avalanche_forward
from torch import nn

from engrams.benchmarks.data.images import ImageData
from engrams.benchmarks.data.loading import TensorClassificationDataset
from engrams.benchmarks.data.streams import make_benchmark
from engrams.benchmarks.protocols import registry as protocol
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.protocols.schema import CNN, MLP, OwnNetwork, ReducedResNet18, SplitStream, WideResNet
from engrams.benchmarks.training.networks import (
    ConvolutionalNetwork,
    PreActivationBlock,
    ReducedResNet,
    WideResidualNetwork,
    make_network,
)
from engrams.strategies import gradient_plan
from engrams.strategies.importance import diagonal_fisher
from engrams.strategies.minibatches import Minibatch

SMALL = CNN(kind="cnn", convolutions=(4, "M", 6, "M"), hidden_sizes=(10,))
RESNET = ReducedResNet18(kind="resnet18-reduced", width=2)
WIDE = WideResNet(kind="wide-resnet", depth=10, widen_factor=1)


def benchmark_of(channels, size, scenario):
    torch.manual_seed(0)
    y = torch.arange(24) % 4
    x = torch.rand(24, channels, size, size)
    return make_benchmark(ImageData(x, y, x, y), stream_of(scenario), scenario, "test", seed=0)


def stream_of(scenario):
    return SplitStream(
        kind="split", scenarios=[scenario], classes_per_experience=2, class_order="in-order", validation_fraction=0.5
    )


@pytest.fixture
def own(tmp_path):
    """Writes networks of one's own; returns the reference of one."""
    (tmp_path / "mine.py").write_text(OWN)
    return lambda name: OwnNetwork(kind=f"{tmp_path}/mine.py:{name}")


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        assert isinstance(shape, tuple)
        self.hidden = nn.Sequential(nn.Flatten(), nn.LazyLinear(9), nn.BatchNorm1d(9), nn.ReLU())
        self.classifier = nn.Linear(9, classes)

    def forward(self, x):
        return self.classifier(self.hidden(x))

def other_head(shape, classes): return Net(shape, classes + 1)
def no_head(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
def no_module(shape, classes): return [shape, classes]
def without_its_head(shape, classes):
    net = Net(shape, classes)
    net.forward = lambda x: net.hidden(x)
    return net
def behind_its_head(shape, classes):
    net = Net(shape, classes)
    net.forward = lambda x: net.classifier(net.hidden(x)).log_softmax(1)
    return net
def another_name(shape, classes):
    net = Net(shape, classes)
    net.head = net.classifier
    net.forward = lambda x: net.head(net.hidden(x))
    return net
def other_input(shape, classes):
    net = Net(shape, classes)
    net.hidden = nn.Linear(5, 9)
    return net
def one_argument(shape): return None
number = 3
"""


@pytest.mark.parametrize("network", [SMALL, MLP(hidden_size=7, hidden_layers=2), RESNET, WIDE, "own"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_every_network_has_the_head_of_its_scenario(network, channels, scenario, own):
    benchmark = benchmark_of(channels, 12, scenario)
    network = own("Net") if network == "own" else network
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


def test_a_perceptron_may_begin_as_glorot_and_bengio_say():
    torch.manual_seed(0)
    network = MLP(hidden_size=300, hidden_layers=1, initialisation="xavier")
    model = make_network(network, "domain", benchmark_of(1, 20, "domain"))
    hidden, head = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    for layer, count in ((hidden, 400 + 300), (head, 300 + 2)):
        bound = (6 / count) ** 0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), "even in between"
        assert not layer.bias.any()
    assert "initialisation" not in MLP(hidden_size=3, hidden_layers=1).model_dump()


REDUCED = {"kind": "resnet18-reduced", "width": 20}


def test_a_reduced_resnet_may_begin_as_that_of_chaudhry_et_al():
    torch.manual_seed(0)
    usual, wide = (
        make_network(
            ReducedResNet18(kind="resnet18-reduced", width=20, initialisation=name),
            "domain",
            benchmark_of(3, 32, "domain"),
        )
        for name in ("pytorch", "chaudhry2019")
    )
    convolutions = [
        (layer, other)
        for layer, other in zip(wide.modules(), usual.modules(), strict=True)
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 3  # the first has too few weights for 5 %
    ]
    assert {layer.kernel_size for layer, _ in convolutions} == {(3, 3), (1, 1)}
    for layer, other in convolutions:
        side, _ = layer.kernel_size
        bound = (side * layer.in_channels) ** -0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert (layer.weight.std() / other.weight.std()).item() == pytest.approx(side**0.5, rel=0.05)


def test_what_batch_norm_adds_to_a_variance_is_the_protocols():
    for network, eps in ((REDUCED, 1e-5), (REDUCED | {"batch_norm_eps": 0.5}, 0.5)):
        made = make_network(ReducedResNet18(**network), "domain", benchmark_of(3, 32, "domain"))
        norms = [layer for layer in made.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert {layer.eps for layer in norms} == {eps}
        assert len(norms) == 20, "one for each convolution"
    assert ReducedResNet18(**REDUCED).model_dump().keys() == REDUCED.keys(), "as records made before they could be set"


def test_importances_of_a_convolutional_network_take_the_short_cut():
    torch.manual_seed(0)
    model = ConvolutionalNetwork(SMALL, torch.Size((3, 8, 8)), 2)
    x = torch.rand(6, 3, 8, 8)
    found = gradient_plan.plan(model, Minibatch(x, None, 0, 0))
    assert len(found.layers) == 4
    assert not found.rest


def test_the_reduced_resnet_is_that_of_the_source():
    """Avalanche has it too, written out by others: the same weights make the same outputs, training or not."""
    torch.manual_seed(0)
    ours, theirs = ReducedResNet(3, 20, 7), SlimResNet18(7, nf=20)
    state = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    theirs.load_state_dict(state)
    x = torch.rand(4, 3, 32, 32)
    for training in (True, False):  # the first changes the running statistics
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    assert ours.classifier.in_features == 160
    ours(x).sum().backward()  # the channels come last on a CPU, but not in gradients, of which others take views
    assert all(parameter.grad.is_contiguous() for parameter in ours.parameters())


def test_the_wide_resnet_is_that_of_the_source():
    """WRN-28-2 has 1,467,610 parameters for ten classes, and the source's own code 1,468,900 for twenty."""
    for classes, expected in ((10, 1_467_610), (20, 1_468_900)):
        network = WideResidualNetwork(3, 28, 2, classes)
        assert sum(parameter.numel() for parameter in network.parameters()) == expected
    # Depth counts the layers with weights on the longest way: 1 + 3 * 4 * 2 + 1, and the shortcuts' beside them.
    shapes = [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert len([shape for shape in shapes if shape[-1] == 3]) == 28 - 4 + 1
    assert [shape[:2] for shape in shapes if shape[-1] == 1] == [(32, 16), (64, 32), (128, 64)]
    assert network.features(torch.rand(2, 3, 32, 32)).shape == (2, 128, 8, 8)


def test_a_block_is_what_pre_activation_says():
    """Twice ReLU(norm) before its convolution; the way around takes what the first one takes, or the block's input."""
    torch.manual_seed(0)
    for inputs, outputs, stride in ((4, 4, 1), (4, 6, 2)):
        block = PreActivationBlock(inputs, outputs, stride).eval()
        x = torch.randn(3, inputs, 8, 8)
        for norm in (block.norm1, block.norm2):
            nn.init.uniform_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        active = nn.functional.relu(block.norm1(x))
        first = nn.functional.conv2d(active, block.conv1.weight, stride=stride, padding=1)
        second = nn.functional.conv2d(nn.functional.relu(block.norm2(first)), block.conv2.weight, padding=1)
        around = x if stride == 1 else nn.functional.conv2d(active, block.shortcut.weight, stride=stride)
        torch.testing.assert_close(block(x), around + second)


@pytest.mark.parametrize("model", [ReducedResNet(1, 2, 3), WideResidualNetwork(1, 10, 1, 3)])
def test_importances_of_a_network_with_batch_norm_are_right(model):
    """The Fisher, sample by sample by autograd, in eval mode."""
    torch.manual_seed(0)
    x = torch.rand(5, 1, 12, 12)
    model(x)  # running statistics other than 0 and 1
    data = TensorClassificationDataset.from_tensors(x, torch.tensor([0, 1, 2, 0, 1]), task_label=0)
    found = diagonal_fisher(model, data, fisher="empirical")
    model.eval()
    expected = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for image, label, _ in data:
        model.zero_grad()
        nn.functional.cross_entropy(model(image[None]), torch.tensor([label])).backward()
        for name, parameter in model.named_parameters():
            expected[name] += parameter.grad**2 / 5
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (SMALL, (7,), r"network.kind: cnn needs images .*; these have shape \[7\], which mlp takes"),
        (RESNET, (7,), r"network.kind: resnet18-reduced needs images .*; these have shape \[7\]"),
        (RESNET, (1, 8, 8), "resnet18-reduced needs images of at least 9x9; these are 8x8 .images.pad enlarges those"),
        (WIDE, (1, 4, 4), "wide-resnet needs images of at least 5x5; these are 4x4 .images.pad enlarges those"),
        (SMALL, (1, 3, 3), "network.convolutions: 2 poolings are too many for images of 3x3"),
    ],
)
def test_a_network_that_does_not_suit_the_data_is_refused(network, shape, message):
    y = torch.arange(24) % 4
    x = torch.rand(24, *shape)
    benchmark = make_benchmark(ImageData(x, y, x, y), stream_of("class"), "class", "test", seed=0)
    with pytest.raises(ProtocolError, match=message):
        make_network(network, "class", benchmark)


def test_a_head_may_have_every_class_from_the_start():
    network = MLP(hidden_size=5, hidden_layers=1, all_classes=True)
    assert network.model_dump() == {"hidden_size": 5, "hidden_layers": 1, "all_classes": True}
    benchmark = benchmark_of(1, 9, "class")
    model = make_network(network, "class", benchmark)
    assert type(model.classifier) is torch.nn.Linear
    assert model(benchmark.train_stream[0].dataset[0][0][None]).shape == (1, 4), "none is masked"
    heads = make_network(network, "task", benchmark_of(1, 9, "task")).classifier
    assert isinstance(heads, MultiHeadClassifier), "a head a task has its own classes"


def test_a_seed_in_ones_own_file_is_not_the_runs(tmp_path):
    """Its file is read in the run; what it does to the global generators is undone."""
    text = "import torch\ntorch.manual_seed(42)\n\n\nclass Net(torch.nn.Sequential):\n"
    text += "    def __init__(self, shape, classes):\n        super().__init__(torch.nn.Flatten())\n"
    text += "        self.classifier = torch.nn.Linear(64, classes)\n"
    found, benchmark = [], benchmark_of(1, 8, "class")
    for seed in (0, 1):
        (tmp_path / f"of_{seed}.py").write_text(text, encoding="utf-8")
        torch.manual_seed(seed)
        network = make_network(OwnNetwork(kind=f"{tmp_path}/of_{seed}.py:Net"), "class", benchmark)
        found.append(network.classifier.classifier.weight)
    assert not torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other_head", "nn.Linear with 2 outputs; its classifier is Linear.in_features=9, out_features=3"),
        ("no_head", "an output layer called classifier, an nn.Linear with 2 outputs; its classifier is None"),
        ("no_module", "returns a list, no torch.nn.Module"),
        ("without_its_head", r"makes outputs \(2, 9\) of inputs \(2, 1, 8, 8\); they have to be \(2, 2\)"),
        ("behind_its_head", r"does more behind its classifier, .*: return what the classifier returns"),
        (
            "another_name",
            r"has a classifier that its forward does not call as a layer of that name.*: write self.classifier",
        ),
        ("other_input", r"fails on inputs \(2, 1, 8, 8\): RuntimeError: "),
        ("one_argument", r"called with \(1, 8, 8\) and 2, fails in .*: TypeError: one_argument.. takes 1 positional"),
        ("number", "is no function but a int"),
        ("Nett", "mine.py has no 'Nett'; did you mean 'Net'"),
    ],
)
def test_ones_own_network_that_cannot_be_is_one_line(own, name, message):
    with pytest.raises(ProtocolError, match=message) as caught:
        make_network(own(name), "class", benchmark_of(1, 8, "class"))
    assert str(caught.value).startswith("network.kind: ")
    assert "\n" not in str(caught.value)
