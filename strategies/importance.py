"""Importance of each parameter, as a statistic of per-sample gradients.

The diagonal Fisher information is the mean, over samples, of *squared per-sample* gradients of log p(y | x, theta).
Which y is meant makes four estimators (van de Ven 2025, arXiv:2502.11756), and which distribution p is follows from
the loss the network was trained with.

No per-sample gradient is stored where a layer is linear: sample n's gradient is the outer product d_n a_n' of the
back-propagated signal d_n and the layer's input a_n, so the sum of its squares over samples is (d*d)' (a*a), one matrix
product a layer and batch. Convolutions are linear on unfolded patches. Networks with any other trainable layer take
the general way, ``torch.func``'s vmap of grad, in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

Fisher = Literal["exact", "sampled", "empirical", "batched"]
Likelihood = Literal["categorical", "gaussian"]

SAMPLES_AT_ONCE = 1000
"""Samples in one forward pass. Bounds the activations held; the result does not depend on it."""

NUMBERS_AT_ONCE = 2**26
"""Per-sample gradient entries held at once (256 MiB of float32) where they have to be written out."""


def diagonal_fisher(
    model: nn.Module,
    dataset: Dataset,
    fisher: Fisher = "exact",
    fisher_samples: int | None = None,
    *,
    likelihood: Likelihood = "categorical",
    noise_std: float = 1.0,
    batch_size: int = 32,
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information matrix of ``model`` on ``dataset``, at the model's present parameters.

    F_i = E_x E_{y ~ p(y|x)} [(d log p(y|x) / d theta_i)^2]  (Kirkpatrick et al. 2017, eq. 3), the model in eval mode.

    Args:
        model: maps a batch x to outputs of shape [N, K]; an Avalanche ``MultiTaskModule`` also gets the task label.
        dataset: yields (x, y) or (x, y, ..., task label), as Avalanche's datasets do. y is read by ``empirical`` and
            ``batched`` only.
        fisher: which y stands in the expectation.
            ``exact``: all of them, weighted by p(y|x): no randomness is left.
            ``sampled``: one y drawn from p(y|x) for each x, by torch's global generator.
            ``empirical``: the dataset's own y.
            ``batched``: the squared gradient of a *mini-batch mean* with the dataset's own y, averaged over
            mini-batches. Not a Fisher estimate (it shrinks as ``batch_size`` grows); it is what many libraries
            compute, and is kept so that the difference can be shown.
        fisher_samples: how many x, drawn without replacement by torch's global generator; None, or more than there
            are, means all.
        likelihood: what p(y|x) is. ``categorical``: softmax of the K outputs, y a class index. ``gaussian``: normal
            around the K outputs with standard deviation ``noise_std`` in every one, y of shape [N, K].
        noise_std: standard deviation of the gaussian likelihood, > 0.
        batch_size: mini-batch size of ``batched``; the other three do not depend on it.

    Returns:
        Parameter name -> non-negative tensor of the parameter's shape, detached, for every parameter that requires a
        gradient. Parameters that the outputs do not depend on (another task's head) get zeros.

    Raises:
        ValueError: an unknown ``fisher`` or ``likelihood``, a number out of range, or an empty dataset.
    """
    check_fisher_options(fisher, fisher_samples, likelihood, noise_std)
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("diagonal_fisher needs at least one sample; the dataset is empty")
    log_density = Categorical() if likelihood == "categorical" else Gaussian(noise_std)
    indices = _chosen_samples(len(dataset), fisher_samples)  # type: ignore[arg-type]
    with _evaluation_mode(model):
        if fisher == "batched":
            return _squared_batch_gradients(model, dataset, indices, log_density, batch_size)
        return _squared_sample_gradients(model, dataset, indices, log_density, fisher)


def check_fisher_options(fisher: str, fisher_samples: int | None, likelihood: str, noise_std: float) -> None:
    """Raise a ValueError that names the first option out of its range."""
    if fisher not in get_args(Fisher):
        raise ValueError(f"fisher must be one of {', '.join(get_args(Fisher))}; got {fisher!r}")
    if likelihood not in get_args(Likelihood):
        raise ValueError(f"likelihood must be one of {', '.join(get_args(Likelihood))}; got {likelihood!r}")
    if fisher_samples is not None and fisher_samples < 1:
        raise ValueError(f"fisher_samples must be at least 1, or None for all; got {fisher_samples}")
    if not noise_std > 0:
        raise ValueError(f"noise_std must be greater than 0; got {noise_std}")


# --- what p(y | x, theta) is ------------------------------------------------------------------------------------------


class LogDensity(Protocol):
    """log p(y|x) as a function of the network's outputs [N, K]; every method works on a whole batch."""

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """log p(y_n | x_n), up to a constant: [N]."""

    def draw(self, outputs: Tensor) -> Tensor:
        """One y from p(y | x_n) for each n."""

    def columns(self, outputs: Tensor) -> list[int]:
        """The outputs that ``expected_square`` has to be called for."""

    def expected_square(self, outputs: Tensor, column: int) -> Tensor:
        """[N] numbers; their squared gradients, added up over the columns, are E_y [(d log p(y|x_n))^2]."""


class Categorical:
    """p(y|x) = softmax(outputs)_y."""

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        return -functional.cross_entropy(outputs, y, reduction="none")

    def draw(self, outputs: Tensor) -> Tensor:
        return torch.multinomial(outputs.softmax(1), 1).squeeze(1)

    def columns(self, outputs: Tensor) -> list[int]:
        # A masked unit (a class not met yet) has probability 0 exactly and adds nothing.
        return (outputs.softmax(1).amax(0) > 0).nonzero().flatten().tolist()

    def expected_square(self, outputs: Tensor, column: int) -> Tensor:
        log_p = outputs.log_softmax(1)[:, column]
        # sqrt(p) is a weight, not a function of theta: (sqrt(p) dlog p)^2 = p (dlog p)^2.
        return (log_p.detach() / 2).exp() * log_p


class Gaussian:
    """p(y|x) = N(outputs, noise_std^2 I); the loss it belongs to is ||y - outputs||^2 / (2 noise_std^2)."""

    def __init__(self, noise_std: float):
        self.noise_std = noise_std

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        return -((y - outputs) / self.noise_std).square().flatten(1).sum(1) / 2

    def draw(self, outputs: Tensor) -> Tensor:
        return outputs + self.noise_std * torch.randn_like(outputs)

    def columns(self, outputs: Tensor) -> list[int]:
        return list(range(outputs.shape[1]))

    def expected_square(self, outputs: Tensor, column: int) -> Tensor:
        # d log p = sum_k (y_k - f_k) / s^2 df_k and the residuals are independent with variance s^2.
        return outputs[:, column] / self.noise_std


# --- the sums over samples --------------------------------------------------------------------------------------------


def _squared_sample_gradients(
    model: nn.Module, dataset: Dataset, indices: Tensor | None, density: LogDensity, fisher: Fisher
) -> dict[str, Tensor]:
    """Mean over samples of squared per-sample gradients."""
    sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    count = 0
    layers: dict[str, nn.Module] | None = None
    for x, y, task in minibatches(model, dataset, SAMPLES_AT_ONCE, indices):
        if count == 0:
            layers = _short_cut_layers(model, x, task)
        add = _add_by_layer if layers is not None else _add_by_vmap
        add(sums, model, layers, x, y, task, density, fisher)
        count += len(x)
    return {name: total / count for name, total in sums.items()}


def _terms(density: LogDensity, outputs: Tensor, target: Tensor, columns: list[int] | None) -> list[Tensor]:
    """[N] tensors whose squared per-sample gradients add up to sample n's contribution to the Fisher."""
    if columns is None:
        return [density.score(outputs, target)]
    return [density.expected_square(outputs, column) for column in columns]


def _target_and_columns(density: LogDensity, outputs: Tensor, y: Tensor, fisher: Fisher) -> tuple[Tensor, Any]:
    if fisher == "exact":
        return y, density.columns(outputs)
    return (density.draw(outputs) if fisher == "sampled" else y), None


def _add_by_layer(sums, model, layers, x, y, task, density, fisher) -> None:
    """The short cut: one forward pass, one backward pass of signals a term, one matrix product a layer."""
    with _recorded(layers) as calls, torch.enable_grad():
        outputs = forward(model, x, task)
    target, columns = _target_and_columns(density, outputs.detach(), y, fisher)
    names = [name for name in layers if name in calls]
    squared_signals: dict[str, Tensor] = {}
    with torch.enable_grad():
        terms = _terms(density, outputs, target, columns)
    for term in terms:
        signals = torch.autograd.grad(term.sum(), [calls[name][1] for name in names], retain_graph=True)
        for name, signal in zip(names, signals, strict=True):
            if isinstance(layers[name], nn.Linear):
                squared = signal.square()
                squared_signals[name] = squared if name not in squared_signals else squared_signals[name] + squared
            else:
                _add_convolution(sums, name, layers[name], calls[name][0], signal)
    for name, squared in squared_signals.items():
        inputs = calls[name][0]
        _add_if_trainable(sums, _below(name, "weight"), lambda s=squared, a=inputs: s.T @ a.square())
        _add_if_trainable(sums, _below(name, "bias"), lambda s=squared: s.sum(0))


def _add_convolution(sums, name: str, layer: nn.Conv2d, inputs: Tensor, signal: Tensor) -> None:
    """A convolution is linear on unfolded patches; positions are summed before squaring."""
    signal = signal.flatten(2)  # [N, O, positions]
    _add_if_trainable(sums, _below(name, "bias"), lambda: signal.sum(2).square().sum(0))
    weight = _below(name, "weight")
    if weight not in sums:
        return
    assert not isinstance(layer.padding, str)  # _has_short_cut
    patches = functional.unfold(
        inputs, layer.kernel_size, dilation=layer.dilation, padding=layer.padding, stride=layer.stride
    )  # [N, I * kernel, positions]
    at_once = max(1, NUMBERS_AT_ONCE // layer.weight.numel())
    for d, a in zip(signal.split(at_once), patches.split(at_once), strict=True):
        sums[weight] += (d @ a.transpose(1, 2)).square().sum(0).view_as(layer.weight)


def _add_if_trainable(sums: dict[str, Tensor], name: str, value) -> None:
    if name in sums:
        sums[name] += value()


def _add_by_vmap(sums, model, layers, x, y, task, density, fisher) -> None:
    """The general way: the per-sample gradients written out, a chunk at a time."""
    with torch.no_grad():
        outputs = forward(model, x, task)
    target, columns = _target_and_columns(density, outputs, y, fisher)
    parameters = {name: p.detach() for name, p in trainable_parameters(model).items()}
    places = _places(model)

    def terms_of_one(parameters, x_n, target_n):
        placed = {place: parameters[name] for place, name in places.items()}
        # functional_call's own handling of tied weights does not restore a module that is registered twice.
        outputs = functional_call(model, placed, _arguments(model, x_n[None], task), tie_weights=False)
        return torch.stack(_terms(density, outputs, target_n[None], columns)).squeeze(1)

    gradients_of = vmap(jacrev(terms_of_one), in_dims=(None, 0, 0))
    numbers = sum(p.numel() for p in parameters.values()) * (1 if columns is None else len(columns))
    at_once = max(1, NUMBERS_AT_ONCE // numbers)
    for x_chunk, target_chunk in zip(x.split(at_once), target.split(at_once), strict=True):
        gradients = gradients_of(parameters, x_chunk, target_chunk)  # name -> [n, terms, *shape]
        for name, gradient in gradients.items():
            sums[name] += gradient.detach().square().sum((0, 1))


def _squared_batch_gradients(
    model: nn.Module, dataset: Dataset, indices: Tensor | None, density: LogDensity, batch_size: int
) -> dict[str, Tensor]:
    """Mean over mini-batches of the squared gradient of the mini-batch's mean log density."""
    parameters = trainable_parameters(model)
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    batches = 0
    for x, y, task in minibatches(model, dataset, batch_size, indices):
        with torch.enable_grad():
            mean = density.score(forward(model, x, task), y).mean()
        gradients = torch.autograd.grad(mean, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient.square()
        batches += 1
    return {name: total / batches for name, total in sums.items()}


# --- models and data --------------------------------------------------------------------------------------------------


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name. Frozen parameters and buffers have no importance."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _below(module_name: str, attribute: str) -> str:
    """The name of a module's attribute; the model itself has the empty name."""
    return f"{module_name}.{attribute}" if module_name else attribute


def _places(model: nn.Module) -> dict[str, str]:
    """Every place that holds a trainable parameter -> its name; tied parameters have several places."""
    names = {id(p): name for name, p in trainable_parameters(model).items()}
    return {
        _below(module_name, attribute): names[id(p)]
        for module_name, module in model.named_modules()
        for attribute, p in module.named_parameters(recurse=False)
        if id(p) in names
    }


def forward(model: nn.Module, x: Tensor, task: int) -> Tensor:
    """The model's outputs on a batch of one task."""
    return model(*_arguments(model, x, task))


def _arguments(model: nn.Module, x: Tensor, task: int) -> tuple:
    return (x, task) if isinstance(model, MultiTaskModule) else (x,)


def minibatches(
    model: nn.Module, dataset: Dataset, batch_size: int, indices: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """(x, y, task label) in the dataset's order, on the model's device, one task in each."""
    device = next(model.parameters()).device
    collate_fn = getattr(dataset, "collate_fn", None)
    if indices is not None:
        dataset = Subset(dataset, indices.tolist())
    # A loader draws a seed when its iterator is made; from its own generator, so that measuring an importance leaves
    # torch's global one, and with it the training that follows, as they were.
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate_fn, generator=torch.Generator()):
        x, y = batch[0].to(device), batch[1].to(device)
        tasks = batch[-1].to(device) if len(batch) > 2 else torch.zeros(len(x), dtype=torch.long, device=device)
        labels = tasks.unique().tolist()
        for label in labels:
            chosen = slice(None) if len(labels) == 1 else tasks == label
            yield x[chosen], y[chosen], label


def _chosen_samples(available: int, wanted: int | None) -> Tensor | None:
    if wanted is None or wanted >= available:
        return None
    return torch.randperm(available)[:wanted].sort().values


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout, batch norm on its running statistics), every module's own mode restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _short_cut_layers(model: nn.Module, x: Tensor, task: int) -> dict[str, nn.Module] | None:
    """The linear and convolutional layers by name, or None if some trainable parameter has no short cut here.

    A layer has one if its parameters are its own (not tied to another's) and a forward pass runs it at most once, on
    inputs [N, features] or [N, channels, height, width].
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
    }
    if not all(_has_short_cut(layer) for layer in layers.values()):
        return None
    owned = [p for layer in layers.values() for p in layer.parameters(recurse=False)]
    if len({id(p) for p in owned}) < len(owned):
        return None
    runs: list[nn.Module] = []
    flat = True

    def note(module, inputs, output):
        nonlocal flat
        runs.append(module)
        flat = flat and output.dim() == (2 if isinstance(module, nn.Linear) else 4)

    handles = [layer.register_forward_hook(note) for layer in layers.values()]
    try:
        with torch.no_grad():
            forward(model, x[:2], task)
    finally:
        for handle in handles:
            handle.remove()
    return layers if flat and len(runs) == len(set(runs)) else None


def _has_short_cut(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


@contextmanager
def _recorded(layers: dict[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Within: name -> (input, output) of every layer that a forward pass runs."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def recorder(name):
        def record(module, inputs, output):
            calls[name] = (inputs[0].detach(), output)
            # What follows may work in place (ReLU(inplace=True)); it must not overwrite the output recorded here.
            return output.clone()

        return record

    handles = [layer.register_forward_hook(recorder(name)) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
