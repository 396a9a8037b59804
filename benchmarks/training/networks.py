"""The networks that learn, fitted to a scenario's output layer."""

from __future__ import annotations

from functools import singledispatch
from traceback import extract_tb

import torch
from avalanche.benchmarks import CLScenario
from avalanche.models import IncrementalClassifier, SimpleMLP, as_multitask
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import make_layers

from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.protocols.schema import CNN, MLP, Network, OwnNetwork, ReducedResNet18, WideResNet
from engrams.strategies.copies import copy_of
from engrams.strategies.references import BadReference, resolve
from engrams.strategies.undisturbed import evaluation_mode, same_random_numbers


def make_network(network: Network, scenario: str, benchmark: CLScenario) -> nn.Module:
    """Returns a network with the output layer that the scenario calls for.

    Args:
        network: the layers before it.
        scenario: ``task``: one head an experience, chosen by the task label. ``domain``: one head, of fixed size.
            ``class``: one head that grows with the classes met; units of classes not met yet are masked (or, where
            the network has ``all_classes``, one of fixed size).
        benchmark: its first experience gives the shape of the input and the number of classes.

    Returns:
        A module whose head is called ``classifier``, on inputs [N, ...] of the benchmark's shape.

    Raises:
        ProtocolError: such a network cannot be made for inputs of this shape; one's own is not as
            :func:`own_network` wants it.
    """
    if scenario == "domain" or (scenario == "class" and network.all_classes):
        return plain_network(network, benchmark)
    first = benchmark.train_stream[0]
    classes = len(first.classes_in_this_experience)
    module = _build(network, first.dataset[0][0].shape, classes)
    if scenario == "task":
        return as_multitask(module, "classifier")
    in_features = module.get_submodule("classifier").in_features
    module.classifier = IncrementalClassifier(in_features, initial_out_features=classes)
    return module


def plain_network(network: Network, benchmark: CLScenario) -> nn.Module:
    """Returns a network with one head, an nn.Linear called ``classifier``, whose size serves every experience.

    Args:
        network: the layers before it.
        benchmark: as for :func:`make_network`, which says what is raised, too.
    """
    classes = 1 + max(max(experience.classes_in_this_experience) for experience in benchmark.train_stream)
    return _build(network, benchmark.train_stream[0].dataset[0][0].shape, classes)


@singledispatch
def _build(network: Network, shape: torch.Size, classes: int) -> nn.Module:
    """A module on inputs [N, *shape] whose output layer is an nn.Linear called ``classifier``."""
    raise NotImplementedError(type(network))


@_build.register
def _(network: MLP, shape, classes):
    """ReLU, no dropout."""
    module = SimpleMLP(
        num_classes=classes,
        input_size=shape.numel(),
        hidden_size=network.hidden_size,
        hidden_layers=network.hidden_layers,
        drop_rate=0,
    )
    if network.initialisation == "xavier":
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    return module


@_build.register
def _(network: CNN, shape, classes):
    _check_images("cnn", shape)
    try:
        return ConvolutionalNetwork(network, shape, classes)
    except RuntimeError as error:  # a pooling has nothing left to pool
        poolings = network.convolutions.count("M")
        raise ProtocolError(
            f"network.convolutions: {poolings} poolings are too many for images of {shape[1]}x{shape[2]}"
        ) from error


@_build.register
def _(network: ReducedResNet18, shape, classes):
    _check_images("resnet18-reduced", shape, halvings=3)
    module = ReducedResNet(shape[0], network.width, classes)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = network.batch_norm_eps
        if isinstance(layer, nn.Conv2d) and network.initialisation == "chaudhry2019":
            bound = (layer.kernel_size[0] * layer.in_channels) ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound)
    return module


@_build.register
def _(network: WideResNet, shape, classes):
    _check_images("wide-resnet", shape, halvings=2)
    return WideResidualNetwork(shape[0], network.depth, network.widen_factor, classes)


@_build.register
def _(network: OwnNetwork, shape, classes):
    return own_network(network.kind, tuple(shape), classes)


def _check_images(kind: str, shape: torch.Size, halvings: int = 0) -> None:
    if len(shape) != 3:
        raise ProtocolError(
            f"network.kind: {kind} needs images [channels, height, width]; these have shape {list(shape)}, which mlp "
            f"takes"
        )
    if halvings and min(shape[1:]) <= 2**halvings:  # of one pixel, a minibatch of one image has no variance
        least = 2**halvings + 1
        raise ProtocolError(
            f"network.kind: {kind} needs images of at least {least}x{least}; these are {shape[1]}x{shape[2]} "
            f"(images.pad enlarges those of a data set; a benchmark enlarges its own)"
        )


def own_network(reference: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Returns a network of one's own: what the function named by the reference returns for these two arguments.

    Args:
        reference: ``module:function`` or ``file.py:function``. Called with shape and classes, the function returns a
            module whose output layer is an ``nn.Linear`` with ``classes`` outputs, called ``classifier``: other heads
            are put in its place. The module returns what that layer does.
        shape: of one input, (channels, height, width) or (values,).
        classes: of the first experience.

    Raises:
        ProtocolError: there is no such function, it fails, or it returns something else; the message is one line.
    """
    try:
        with same_random_numbers():  # its file may set a seed
            function = resolve(reference)
    except BadReference as error:
        raise ProtocolError(f"network.kind: {error}") from error
    if not callable(function):
        raise ProtocolError(f"network.kind: {reference} is no function but a {type(function).__name__}")
    try:
        module = function(shape, classes)
    except Exception as error:  # somebody's own code: anything
        frame = extract_tb(error.__traceback__)[-1]
        raise ProtocolError(
            f"network.kind: {reference}, called with {shape} and {classes}, fails in {frame.filename}, line "
            f"{frame.lineno}: {_said(error)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ProtocolError(f"network.kind: {reference} returns a {type(module).__name__}, no torch.nn.Module")
    head = getattr(module, "classifier", None)
    if not isinstance(head, nn.Linear) or head.out_features != classes:
        raise ProtocolError(
            f"network.kind: {reference} has to return a module with an output layer called classifier, an "
            f"nn.Linear with {classes} outputs; its classifier is {head}"
        )
    of_head: list[Tensor] = []
    try:
        module.classifier = copy_of(head)  # as other heads will be put in its place
        module.classifier.register_forward_hook(lambda layer, inputs, outputs: of_head.append(outputs.clone()))
        with evaluation_mode(module), torch.no_grad():
            outputs = module(torch.zeros(2, *shape))
            shape_of_outputs, calls = tuple(outputs.shape), len(of_head)
            are_its = calls == 1 and torch.equal(of_head[0].nan_to_num(), outputs.nan_to_num())
    except Exception as error:
        raise ProtocolError(f"network.kind: {reference} fails on inputs {(2, *shape)}: {_said(error)}") from error
    module.classifier = head
    if shape_of_outputs != (2, classes):
        raise ProtocolError(
            f"network.kind: {reference} makes outputs {shape_of_outputs} of inputs {(2, *shape)}; they have to be "
            f"{(2, classes)}, those of its classifier"
        )
    if calls != 1:
        raise ProtocolError(
            f"network.kind: {reference} has a classifier that its forward does not call as a layer of that name, once; "
            f"other heads are put in its place: write self.classifier(...)"
        )
    if not are_its:
        raise ProtocolError(
            f"network.kind: {reference} does more behind its classifier, where a head for each task has its place: "
            f"return what the classifier returns (the loss is cross-entropy, which takes the softmax)"
        )
    return module


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


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


class ReducedResNet(nn.Module):
    """The ResNet-18 for images of 32x32 of Lopez-Paz & Ranzato 2017 (facebookresearch/GradientEpisodicMemory).

    A convolution 3x3, four stages of two residual blocks, of which the last three halve the image, a mean over what is
    left of it; batch norm after every convolution, no max-pooling. Initialised as PyTorch does, unless a protocol says
    otherwise.
    """

    def __init__(self, channels: int, width: int, classes: int):
        """
        Args:
            channels: of the images.
            width: channels of the first stage; 20 in the source.
            classes: outputs.
        """
        super().__init__()
        stages: list[nn.Module] = [
            nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            stride = 1 if stage == 0 else 2
            shortcut = None
            if stride != 1:
                shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
                )
            stages += [BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs)]
            inputs = outputs
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N, classes] of inputs [N, channels, height, width]."""
        if x.device.type == "cpu":  # a quarter less time in minibatches of 10, a third less of 32; the weights stay as
            x = x.contiguous(memory_format=torch.channels_last)  # they are, since others take views of their gradients
        return self.classifier(self.features(x).mean(dim=(2, 3)))


class PreActivationBlock(nn.Module):
    """Two convolutions 3x3, each behind a batch norm and a ReLU, and a way around them (He et al. 2016, 1603.05027)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        """
        Args:
            inputs: channels.
            outputs: channels.
            stride: of the first convolution.
        """
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, outputs, height / stride, width / stride] of features [N, inputs, height, width]."""
        active = self.norm1(x).relu()
        around = x if self.shortcut is None else self.shortcut(active)
        return around + self.conv2(self.norm2(self.conv1(active)).relu())


class WideResidualNetwork(nn.Module):
    """WRN-depth-widen (Zagoruyko & Komodakis 2016), as Hsu et al. 2018 have it (GT-RIPL/Continual-Learning-Benchmark).

    A convolution 3x3 to 16 channels, three stages of pre-activation blocks, of which the last two halve the image,
    batch norm and ReLU, a mean over what is left of the image. Initialised as PyTorch does.
    """

    def __init__(self, channels: int, depth: int, widen_factor: int, classes: int):
        """
        Args:
            channels: of the images.
            depth: 4 more than a multiple of 6.
            widen_factor: the stages have 16, 32 and 64 times as many channels.
            classes: outputs.
        """
        super().__init__()
        inputs = 16
        layers: list[nn.Module] = [nn.Conv2d(channels, inputs, kernel_size=3, padding=1, bias=False)]
        for stage in range(3):
            outputs = 16 * 2**stage * widen_factor
            for block in range((depth - 4) // 6):
                layers.append(PreActivationBlock(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N, classes] of inputs [N, channels, height, width]."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))
