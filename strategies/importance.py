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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, get_args

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
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
            compute, and is kept so that the difference can be shown. A mini-batch of several tasks counts as one
            mini-batch a task.
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
    """log p(y|x) as a function of the network's outputs f [N, K]; every method works on a whole batch.

    A *signal* is a vector v_n for each sample, [N, K], that is pulled back through the network: the gradient of a
    function of the outputs with respect to theta is J_n' v_n, with v_n the function's gradient with respect to f_n.
    """

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The signal d log p(y_n | x_n) / d f_n."""

    def draw(self, outputs: Tensor) -> Tensor:
        """One y from p(y | x_n) for each n."""

    def expectation(self, outputs: Tensor) -> Tensor:
        """Signals [terms, N, K] whose squared pull-backs add up to E_y [(d log p(y|x_n) / d theta)^2]."""


class Categorical:
    """p(y|x) = softmax(f)_y, so that d log p(y|x) / d f = e_y - p."""

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        return functional.one_hot(y, outputs.shape[1]) - outputs.softmax(1)

    def draw(self, outputs: Tensor) -> Tensor:
        return torch.multinomial(outputs.softmax(1), 1).squeeze(1)

    def expectation(self, outputs: Tensor) -> Tensor:
        # E_y [(J'(e_y - p))^2] = sum_c (J' sqrt(p_c) (e_c - p))^2
        p = outputs.softmax(1)
        classes = (p.amax(0) > 0).nonzero().flatten()  # a masked unit (a class not met yet) has probability 0 exactly
        weights = p[:, classes].T.sqrt().unsqueeze(2)
        return weights * (functional.one_hot(classes, p.shape[1]).unsqueeze(1) - p)


class Gaussian:
    """p(y|x) = N(f, s^2 I), s = noise_std; the loss it belongs to is ||y - f||^2 / (2 s^2)."""

    def __init__(self, noise_std: float):
        self.noise_std = noise_std

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (y - outputs) / self.noise_std**2

    def draw(self, outputs: Tensor) -> Tensor:
        return outputs + self.noise_std * torch.randn_like(outputs)

    def expectation(self, outputs: Tensor) -> Tensor:
        # E_y [(J'(y - f) / s^2)^2] = sum_k (J' e_k / s)^2: the residuals are independent with variance s^2.
        identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        return (identity / self.noise_std).unsqueeze(1).expand(-1, *outputs.shape)


# --- the sums over samples --------------------------------------------------------------------------------------------


def _squared_sample_gradients(
    model: nn.Module, dataset: Dataset, indices: Tensor | None, density: LogDensity, fisher: Fisher
) -> dict[str, Tensor]:
    """Mean over samples of squared per-sample gradients."""
    sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    count = 0
    # By task, since another task may run other layers: the layers with a short cut, and how many samples at once.
    short_cuts: dict[int, dict[str, nn.Module] | None] = {}
    at_once: dict[int, int] = {}
    for x_all, y_all, task in minibatches(model, dataset, SAMPLES_AT_ONCE, indices):
        if task not in short_cuts:
            short_cuts[task] = _short_cut_layers(model, x_all, task)
            with torch.no_grad():
                outputs = forward(model, x_all[:1], task).shape[1]
            at_once[task] = max(1, NUMBERS_AT_ONCE // outputs**2)  # the exact Fisher: K signals of K numbers a sample
        layers = short_cuts[task]
        for x, y in zip(x_all.split(at_once[task]), y_all.split(at_once[task]), strict=True):

            def signals(f: Tensor, y: Tensor = y) -> Tensor:
                return _signals(density, f, y, fisher)

            if layers is not None:
                _add_by_layer(sums, model, layers, x, task, signals)
            else:
                _add_by_vmap(sums, model, x, task, signals)
            count += len(x)
    return {name: total / count for name, total in sums.items()}


def _signals(density: LogDensity, outputs: Tensor, y: Tensor, fisher: Fisher) -> Tensor:
    """[terms, N, K]: what is pulled back and squared."""
    if fisher == "exact":
        return density.expectation(outputs)
    return density.score(outputs, density.draw(outputs) if fisher == "sampled" else y).unsqueeze(0)


Signals = Callable[[Tensor], Tensor]


def _add_by_layer(
    sums: dict[str, Tensor], model: nn.Module, layers: dict[str, nn.Module], x: Tensor, task: int, signals: Signals
) -> None:
    """The short cut: one forward pass, one backward pass of signals a term, one matrix product a layer."""
    with _recorded(layers) as calls, torch.enable_grad():
        outputs = forward(model, x, task)
    names = [name for name in layers if name in calls]
    squared: dict[str, Tensor] = {}
    for signal in signals(outputs.detach()):
        at_layers = torch.autograd.grad(
            outputs, [calls[name][0][1] for name in names], signal, retain_graph=True, allow_unused=True
        )
        for name, d in zip(names, at_layers, strict=True):
            layer = layers[name]
            if d is None:  # it ran, but the outputs do not depend on it
                continue
            if isinstance(layer, nn.Conv2d):
                _add_convolution(sums, name, layer, calls[name][0][0], d)
            elif name in squared:
                squared[name].addcmul_(d, d)
            else:
                squared[name] = d.square()
    for name, d_squared in squared.items():
        weight, bias = _below(name, "weight"), _below(name, "bias")
        if weight in sums:
            sums[weight].addmm_(d_squared.T, calls[name][0][0].square())
        if bias in sums:
            sums[bias] += d_squared.sum(0)


def _add_convolution(sums: dict[str, Tensor], name: str, layer: nn.Conv2d, inputs: Tensor, signal: Tensor) -> None:
    """Positions are summed before squaring, so each sample's gradient is written out, a chunk of samples at a time."""
    weight, bias = _below(name, "weight"), _below(name, "bias")
    if bias in sums:
        sums[bias] += signal.flatten(2).sum(2).square().sum(0)
    if weight in sums:
        patches = layer.weight[0].numel() * signal[0, 0].numel()
        at_once = max(1, NUMBERS_AT_ONCE // (layer.weight.numel() + patches))
        for d, a in zip(signal.split(at_once), inputs.split(at_once), strict=True):
            sums[weight] += _weight_gradients(layer, a, d).square().sum(0)


def _add_by_vmap(sums: dict[str, Tensor], model: nn.Module, x: Tensor, task: int, signals: Signals) -> None:
    """The general way: the per-sample gradients written out, a chunk at a time."""
    with torch.no_grad():
        v = signals(forward(model, x, task)).transpose(0, 1)  # [N, terms, K]
    parameters = {name: p.detach() for name, p in trainable_parameters(model).items()}
    places = _places(model)

    def gradients_of_one(x_n, v_n):
        def outputs_of_one(parameters):
            placed = {place: parameters[name] for place, name in places.items()}
            # functional_call's own handling of tied weights does not restore a module that is registered twice.
            return functional_call(model, placed, _arguments(model, x_n[None], task), tie_weights=False)[0]

        _, pull_back = vjp(outputs_of_one, parameters)
        return vmap(pull_back)(v_n)[0]

    at_once = max(1, NUMBERS_AT_ONCE // (v.shape[1] * sum(p.numel() for p in parameters.values())))
    for x_chunk, v_chunk in zip(x.split(at_once), v.split(at_once), strict=True):
        gradients = vmap(gradients_of_one)(x_chunk, v_chunk)  # name -> [n, terms, *shape]
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
            outputs = forward(model, x, task)
        mean_score = density.score(outputs.detach(), y) / len(x)
        gradients = torch.autograd.grad(outputs, list(parameters.values()), mean_score, allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                sums[name].addcmul_(gradient, gradient)
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

    A layer has one if its parameters are its own (not tied to another's, not used outside of it) and a forward pass
    runs it at most once, on inputs [N, features] or [N, channels, height, width]. A probe of two samples tells.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
    }
    owned = [p for layer in layers.values() for p in layer.parameters(recurse=False) if p.requires_grad]
    if not all(_has_short_cut(layer) for layer in layers.values()) or len({id(p) for p in owned}) < len(owned):
        return None
    probe = x[:2]
    with _recorded(layers) as calls, torch.enable_grad():
        outputs = forward(model, probe, task)
    for name, runs in calls.items():
        output = runs[0][1]
        if (
            len(runs) > 1
            or len(output) != len(probe)
            or output.dim() != (4 if isinstance(layers[name], nn.Conv2d) else 2)
        ):
            return None
    # What decides: the layers' signals and inputs give the very gradient that autograd finds. They do not where a
    # parameter is used outside of its layer as well.
    v = torch.arange(1, outputs.numel() + 1, device=outputs.device).cos().view_as(outputs).to(outputs)
    names = list(calls)
    signals = torch.autograd.grad(
        outputs, [calls[name][0][1] for name in names], v, retain_graph=True, allow_unused=True
    )
    by_layer: dict[str, Tensor] = {}
    for name, d in zip(names, signals, strict=True):
        if d is not None:
            by_layer[_below(name, "weight")] = _weight_gradients(layers[name], calls[name][0][0], d).sum(0)
            by_layer[_below(name, "bias")] = d.flatten(2).sum((0, 2)) if d.dim() == 4 else d.sum(0)
    parameters = trainable_parameters(model)
    gradients = torch.autograd.grad(outputs, list(parameters.values()), v, allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        found = by_layer.get(name)
        if gradient is not None and (found is None or not _same(found, gradient)):
            return None
    return layers


def _same(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def _weight_gradients(layer: nn.Module, inputs: Tensor, d: Tensor) -> Tensor:
    """The gradient of each sample with respect to the layer's weight, [N, *weight.shape], from inputs and signals."""
    if not isinstance(layer, nn.Conv2d):
        return d.unsqueeze(2) * inputs.unsqueeze(1)
    assert not isinstance(layer.padding, str)  # _has_short_cut
    patches = functional.unfold(
        inputs, layer.kernel_size, dilation=layer.dilation, padding=layer.padding, stride=layer.stride
    )  # [N, I * kernel, positions]: a convolution is linear on these
    return (d.flatten(2) @ patches.transpose(1, 2)).view(-1, *layer.weight.shape)


def _has_short_cut(layer: nn.Module) -> bool:
    """A plain linear layer or convolution; subclasses and reparametrised ones (weight norm) may compute otherwise."""
    if {name for name, _ in layer.named_parameters(recurse=False)} - {"weight", "bias"} or layer._forward_pre_hooks:
        return False
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


@contextmanager
def _recorded(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Within: name -> (input, output) of every run of a layer in a forward pass."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def recorder(name):
        def record(module, inputs, output):
            calls.setdefault(name, []).append((inputs[0].detach(), output))
            # What follows may work in place (ReLU(inplace=True)); it must not overwrite the output recorded here.
            return output.clone()

        return record

    handles = [layer.register_forward_hook(recorder(name)) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
