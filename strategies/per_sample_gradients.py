"""Sums over samples of a statistic of per-sample gradients: their squares (Fisher) or absolute values (MAS).

No per-sample gradient is stored where a layer is linear: sample n's gradient is the outer product d_n a_n' of the
back-propagated signal d_n and the layer's input a_n, so the sum of its squares over samples is (d*d)' (a*a) and that of
its absolute values |d|' |a|, one matrix product a layer and batch. Convolutions are linear on unfolded patches.
Networks with any other trainable layer take the general way, ``torch.func``'s vmap of grad, in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

SAMPLES_AT_ONCE = 1000
"""Samples in one forward pass. Bounds the activations held; the result does not depend on it."""

NUMBERS_AT_ONCE = 2**26
"""Per-sample gradient entries held at once (256 MiB of float32) where they have to be written out."""

Statistic = Callable[[Tensor], Tensor]
"""``torch.square`` or ``torch.abs``: of a product it is the product of the factors' own, which the short cut needs."""

Signals = Callable[[Tensor, Tensor | None], Tensor]
"""(outputs [N, K], y or None) -> what is pulled back through the network, [terms, N, K]."""


def mean_over_samples(
    model: nn.Module, dataset: Dataset, signals: Signals, statistic: Statistic, indices: Tensor | None = None
) -> dict[str, Tensor]:
    """(1/N) sum_n sum_terms statistic(J_n' v_n): J_n is the Jacobian of sample n's outputs, v_n a signal.

    The gradient of a function g of the outputs f is J' (dg/df), so a signal stands for the function.

    Args:
        model: in the mode that is meant.
        dataset: as :func:`minibatches` takes it.
        signals: one or several signals for every sample; their statistics are added up.
        statistic: of each gradient entry.
        indices: the samples to use; None for all.

    Returns:
        Parameter name -> tensor of its shape, for every parameter that requires a gradient.
    """
    sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    count = 0
    # By task, since another task may run other layers: the layers with a short cut, and how many samples at once.
    short_cuts: dict[int, dict[str, nn.Module] | None] = {}
    at_once: dict[int, int] = {}
    for x_all, y_all, task in minibatches(model, dataset, SAMPLES_AT_ONCE, indices):
        if task not in short_cuts:
            short_cuts[task] = short_cut_layers(model, x_all, task)
            with torch.no_grad():
                outputs = forward(model, x_all[:1], task).shape[1]
            at_once[task] = max(1, NUMBERS_AT_ONCE // outputs**2)  # at most K signals of K numbers a sample
        layers = short_cuts[task]
        for start in range(0, len(x_all), at_once[task]):
            part = slice(start, start + at_once[task])
            x, y = x_all[part], None if y_all is None else y_all[part]
            if layers is not None:
                _add_by_layer(sums, model, layers, x, y, task, signals, statistic)
            else:
                _add_by_vmap(sums, model, x, y, task, signals, statistic)
            count += len(x)
    return {name: total / count for name, total in sums.items()}


def _add_by_layer(
    sums: dict[str, Tensor],
    model: nn.Module,
    layers: dict[str, nn.Module],
    x: Tensor,
    y: Tensor | None,
    task: int,
    signals: Signals,
    statistic: Statistic,
) -> None:
    """The short cut: one forward pass, one backward pass of signals a term, one matrix product a layer."""
    with recorded(layers) as calls, torch.enable_grad():
        outputs = forward(model, x, task)
    names = [name for name in layers if name in calls]
    of_linear: dict[str, Tensor] = {}
    for signal in signals(outputs.detach(), y):
        at_layers = torch.autograd.grad(
            outputs, [calls[name][0][1] for name in names], signal, retain_graph=True, allow_unused=True
        )
        for name, d in zip(names, at_layers, strict=True):
            layer = layers[name]
            if d is None:  # it ran, but the outputs do not depend on it
                continue
            if isinstance(layer, nn.Conv2d):
                add_convolution(sums, name, layer, calls[name][0][0], d, statistic)
            elif name in of_linear:
                _add(of_linear[name], d, statistic)
            else:
                of_linear[name] = statistic(d)
    for name, d in of_linear.items():
        add_linear(sums, name, statistic(calls[name][0][0]), d)


def _add(total: Tensor, d: Tensor, statistic: Statistic) -> None:
    """total += statistic(d), in one pass over memory where torch has one."""
    if statistic is torch.square:
        total.addcmul_(d, d)
    else:
        total += statistic(d)


def add_linear(sums: dict[str, Tensor], name: str, inputs: Tensor, d: Tensor) -> None:
    """One matrix product, of the statistics of inputs [N, in] and of signals [N, out]."""
    weight, bias = below(name, "weight"), below(name, "bias")
    if weight in sums:
        sums[weight].addmm_(d.T, inputs)
    if bias in sums:
        sums[bias] += d.sum(0)


def add_convolution(
    sums: dict[str, Tensor], name: str, layer: nn.Conv2d, inputs: Tensor, signal: Tensor, statistic: Statistic
) -> None:
    """Positions are summed before the statistic, so each sample's gradient is written out, a chunk at a time."""
    weight, bias = below(name, "weight"), below(name, "bias")
    if bias in sums:
        sums[bias] += statistic(signal.flatten(2).sum(2)).sum(0)
    if weight in sums:
        patches = layer.weight[0].numel() * signal[0, 0].numel()
        at_once = max(1, NUMBERS_AT_ONCE // (layer.weight.numel() + patches))
        for d, a in zip(signal.split(at_once), inputs.split(at_once), strict=True):
            sums[weight] += statistic(_weight_gradients(layer, a, d)).sum(0)


def _add_by_vmap(
    sums: dict[str, Tensor],
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    task: int,
    signals: Signals,
    statistic: Statistic,
) -> None:
    """The general way: the per-sample gradients written out, a chunk at a time."""
    with torch.no_grad():
        v = signals(forward(model, x, task), y).transpose(0, 1)  # [N, terms, K]
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
            sums[name] += statistic(gradient.detach()).sum((0, 1))


def mean_over_minibatches(
    model: nn.Module,
    dataset: Dataset,
    signals: Signals,
    statistic: Statistic,
    batch_size: int,
    indices: Tensor | None = None,
) -> dict[str, Tensor]:
    """The mean over mini-batches of statistic(gradient of the mini-batch's *mean*): what many libraries compute.

    Args:
        model, dataset, statistic, indices: as in :func:`mean_over_samples`.
        signals: exactly one signal for every sample.
        batch_size: samples in a mini-batch; one of several tasks counts as one mini-batch a task.
    """
    parameters = trainable_parameters(model)
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    batches = 0
    for x, y, task in minibatches(model, dataset, batch_size, indices):
        with torch.enable_grad():
            outputs = forward(model, x, task)
        (signal,) = signals(outputs.detach(), y)
        gradients = torch.autograd.grad(outputs, list(parameters.values()), signal / len(x), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                _add(sums[name], gradient, statistic)
        batches += 1
    return {name: total / batches for name, total in sums.items()}


# --- layers with a short cut ------------------------------------------------------------------------------------------


def short_cut_layers(model: nn.Module, x: Tensor, task: int) -> dict[str, nn.Module] | None:
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
    if not all(has_short_cut(layer) for layer in layers.values()) or len({id(p) for p in owned}) < len(owned):
        return None
    probe = x[:2]
    with recorded(layers) as calls, torch.enable_grad():
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
            by_layer[below(name, "weight")] = _weight_gradients(layers[name], calls[name][0][0], d).sum(0)
            by_layer[below(name, "bias")] = d.flatten(2).sum((0, 2)) if d.dim() == 4 else d.sum(0)
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
    assert not isinstance(layer.padding, str)  # has_short_cut
    patches = functional.unfold(
        inputs, layer.kernel_size, dilation=layer.dilation, padding=layer.padding, stride=layer.stride
    )  # [N, I * kernel, positions]: a convolution is linear on these
    return (d.flatten(2) @ patches.transpose(1, 2)).view(-1, *layer.weight.shape)


def has_short_cut(layer: nn.Module) -> bool:
    """A plain linear layer or convolution; subclasses and reparametrised ones (weight norm) may compute otherwise."""
    if {name for name, _ in layer.named_parameters(recurse=False)} - {"weight", "bias"} or layer._forward_pre_hooks:
        return False
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


@contextmanager
def recorded(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
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


# --- models and data --------------------------------------------------------------------------------------------------


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name. Frozen parameters and buffers have no importance."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def below(module_name: str, attribute: str) -> str:
    """The name of a module's attribute; the model itself has the empty name."""
    return f"{module_name}.{attribute}" if module_name else attribute


def _places(model: nn.Module) -> dict[str, str]:
    """Every place that holds a trainable parameter -> its name; tied parameters have several places."""
    names = {id(p): name for name, p in trainable_parameters(model).items()}
    return {
        below(module_name, attribute): names[id(p)]
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
) -> Iterator[tuple[Tensor, Tensor | None, int]]:
    """(x, y, task label) in the dataset's order, on the model's device, one task in each.

    Args:
        dataset: yields (x, y) or (x, y, ..., task label), as Avalanche's datasets do; or x alone, and y is None.
    """
    device = next(model.parameters()).device
    collate_fn = getattr(dataset, "collate_fn", None)
    if indices is not None:
        dataset = Subset(dataset, indices.tolist())
    # A loader draws a seed when its iterator is made; from its own generator, so that measuring an importance leaves
    # torch's global one, and with it the training that follows, as they were.
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate_fn, generator=torch.Generator()):
        columns = [batch] if isinstance(batch, Tensor) else batch
        x = columns[0].to(device)
        y = columns[1].to(device) if len(columns) > 1 else None
        tasks = columns[-1].to(device) if len(columns) > 2 else torch.zeros(len(x), dtype=torch.long, device=device)
        labels = tasks.unique().tolist()
        for label in labels:
            chosen = slice(None) if len(labels) == 1 else tasks == label
            yield x[chosen], None if y is None else y[chosen], label


def chosen_samples(available: int, wanted: int | None) -> Tensor | None:
    if wanted is None or wanted >= available:
        return None
    return torch.randperm(available)[:wanted].sort().values


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout, batch norm on its running statistics), every module's own mode restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
