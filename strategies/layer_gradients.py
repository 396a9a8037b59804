"""Per-sample gradients of single layers, from what went into a layer and the signal that came back to its output.

No per-sample gradient is stored where a layer is linear on rows: sample n's gradient is the outer product d_n a_n' of
the back-propagated signal d_n and the layer's input a_n, so the sum of its squares over samples is (d*d)' (a*a) and
that of its absolute values |d|' |a|, one matrix product a layer and batch. Everywhere else positions are summed before
the statistic is taken, and each sample's gradient is written out, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from engrams.strategies.precision import wide

NUMBERS_WRITTEN_OUT = 2**21
"""Per-sample gradient entries (and unfolded patches) held at once: 8 MiB of float32, which a processor's cache holds.

A reduced ResNet-18's exact Fisher of 10 classes took 1.6 times as long with eight times as many."""

Statistic = Callable[..., Tensor]
"""``torch.square`` or ``torch.abs``: it takes ``out``, and of a product it is the product of the factors' own, which
linear layers need."""

Gradients = dict[str, Tensor]
"""Attribute of a layer (``weight``, ``bias``) -> the gradient of every sample under every signal; or a sum of them."""


class Run:
    """What one layer did in a forward pass: its input and its output, of N rows each."""

    def __init__(self, inputs: Tensor, output: Tensor):
        self.inputs = inputs
        self.output = output


@contextmanager
def recorded(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[Run]]]:
    """Within: name -> every run of a layer in a forward pass."""
    calls: dict[str, list[Run]] = {}

    def recorder(name):
        def record(module, args, kwargs, output):
            inputs = args[0] if args else next(iter(kwargs.values()))
            calls.setdefault(name, []).append(Run(inputs.detach(), output))
            # What follows may work in place (ReLU(inplace=True)); it must not overwrite the output recorded here.
            return output.clone()

        return record

    handles = [layer.register_forward_hook(recorder(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def has_rule(layer: nn.Module) -> bool:
    """Tells whether :func:`gradients` knows the layer; subclasses and those with weight norm compute otherwise."""
    if {name for name, _ in layer.named_parameters(recurse=False)} - {"weight", "bias"} or layer._forward_pre_hooks:
        return False
    if isinstance(layer, _BatchNorm):
        return type(layer) in RULES and layer.running_mean is not None  # else the batch's statistics: no sample's own
    if isinstance(layer, nn.Embedding):
        return type(layer) in RULES and layer.max_norm is None and not layer.scale_grad_by_freq
    return type(layer) in RULES


def add_layer(sums: Gradients, layer: nn.Module, inputs: Tensor, signals: list[Tensor], statistic: Statistic) -> None:
    """Adds the statistic of every sample's gradient under every signal, written out a chunk at a time.

    Args:
        sums: attribute of the layer -> what is added to, of the parameter's shape.
        layer: one that has a rule.
        inputs: [N, ...].
        signals: of the layer's output's shape, each.
        statistic: of each gradient entry.
    """
    if isinstance(layer, nn.Embedding):
        for d in signals:
            _add_embedding(sums["weight"], layer, inputs, wide(d), statistic)
        return
    at_once = max(1, NUMBERS_WRITTEN_OUT // (_numbers(layer, inputs, signals[0]) * len(signals)))
    for start in range(0, len(inputs), at_once):
        chosen = slice(start, start + at_once)
        for attribute, gradient in gradients(layer, inputs[chosen], [d[chosen] for d in signals], set(sums)).items():
            sums[attribute] += statistic(gradient, out=gradient).sum((0, 1))  # no second copy is written


def add_products(sums: Gradients, inputs: Tensor, d: Tensor) -> None:
    """Adds one matrix product, of the statistics of a linear layer's inputs [N, in] and signals [N, out]."""
    if "weight" in sums:
        sums["weight"].addmm_(d.T, inputs)
    if "bias" in sums:
        sums["bias"] += d.sum(0)


def gradients(layer: nn.Module, inputs: Tensor, signals: list[Tensor], wanted: set[str]) -> Gradients:
    """Returns attribute -> the gradient of every sample under every signal, [N, signals, *shape], in float32 at least.

    In mixed precision inputs and signals may be of two types.
    """
    return RULES[type(layer)](layer, wide(inputs), [wide(d) for d in signals], wanted)


def _numbers(layer: nn.Module, inputs: Tensor, d: Tensor) -> int:
    """Numbers that are written out for one sample and signal."""
    weight = layer.weight.numel() if isinstance(layer.weight, Tensor) else 0
    if isinstance(layer, _ConvNd):
        return weight + layer.weight[0].numel() * layer.groups * d[0, 0].numel()
    return weight + inputs[0].numel() + d[0].numel()


# --- one rule a kind of layer -----------------------------------------------------------------------------------------


def _linear(layer: Any, inputs: Tensor, signals: list[Tensor], wanted: set[str]) -> Gradients:
    """Rows [N, ..., in] of one weight: their outer products are summed within a sample."""
    d = torch.stack([d.flatten(1, -2) if d.dim() > 2 else d.unsqueeze(1) for d in signals], 1)  # [N, terms, rows, out]
    a = inputs.flatten(1, -2) if inputs.dim() > 2 else inputs.unsqueeze(1)
    return _only(wanted, weight=lambda: d.transpose(2, 3) @ a.unsqueeze(1), bias=lambda: d.sum(2))


def _convolution(layer: Any, inputs: Tensor, signals: list[Tensor], wanted: set[str]) -> Gradients:
    return _only(
        wanted,
        weight=lambda: _weights_of_convolution(layer, inputs, signals),
        bias=lambda: torch.stack([d.flatten(2).sum(2) for d in signals], 1),
    )


def _weights_of_convolution(layer: Any, inputs: Tensor, signals: list[Tensor]) -> Tensor:
    """A convolution is linear on its patches: [N, I * kernel, positions], the same for all signals."""
    padding = layer.padding
    if isinstance(padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(layer.kernel_size)
    n, groups, terms = len(inputs), layer.groups, len(signals)
    patches = _patches(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    d = torch.stack([d.flatten(2) for d in signals], 1)  # [N, terms, O, positions]
    if groups == 1:
        found = d.flatten(1, 2) @ patches.transpose(1, 2)
    else:
        grouped = d.view(n, terms, groups, -1, d.shape[3]).transpose(1, 2).flatten(2, 3)  # [N, groups, terms * O/g, P]
        found = grouped @ patches.view(n, groups, -1, patches.shape[2]).transpose(2, 3)
        found = found.view(n, groups, terms, -1, found.shape[3]).transpose(1, 2)
    return found.reshape(n, terms, *layer.weight.shape)


def _patches(inputs: Tensor, kernel, dilation, padding, stride) -> Tensor:
    if len(kernel) == 1:  # torch unfolds images only; a sequence is an image of height 1
        inputs = inputs.unsqueeze(2)
        kernel, dilation, padding, stride = (1, *kernel), (1, *dilation), (0, *padding), (1, *stride)
    if len(kernel) == 2:
        return functional.unfold(inputs, kernel, dilation=dilation, padding=padding, stride=stride)
    inputs = functional.pad(inputs, [side for size in reversed(padding) for side in (size, size)])
    for axis, (size, gap, step) in enumerate(zip(kernel, dilation, stride, strict=True), start=2):
        windows = inputs.unfold(axis, gap * (size - 1) + 1, step)  # [N, C, ..., window]
        inputs = windows[..., ::gap]
    axes = len(kernel)
    order = (0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    return inputs.permute(order).flatten(1, 1 + axes).flatten(2)


def _normalised(layer: Any, inputs: Tensor, signals: list[Tensor], wanted: set[str]) -> Gradients:
    """weight * normalised + bias, elementwise: d * normalised, summed over positions within a sample."""
    if isinstance(layer, _BatchNorm):
        mean, variance = layer.running_mean, layer.running_var
        assert mean is not None  # else it has no rule
        assert variance is not None
        x = functional.batch_norm(inputs, wide(mean), wide(variance), eps=layer.eps)
    elif isinstance(layer, nn.GroupNorm):
        x = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    else:
        x = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)

    def summed(t: Tensor) -> Tensor:
        if isinstance(layer, nn.LayerNorm):
            between = t.dim() - 1 - len(layer.normalized_shape)
            return t.flatten(1, between).sum(1) if between else t
        return t.flatten(2).sum(2) if t.dim() > 2 else t

    return _only(
        wanted,
        weight=lambda: torch.stack([summed(d * x) for d in signals], 1),
        bias=lambda: torch.stack([summed(d) for d in signals], 1),
    )


def _prelu(layer: Any, inputs: Tensor, signals: list[Tensor], wanted: set[str]) -> Gradients:
    negative = inputs.clamp(max=0)

    def summed(t: Tensor) -> Tensor:
        if layer.num_parameters == 1:
            return t.flatten(1).sum(1, keepdim=True)
        return t.flatten(2).sum(2) if t.dim() > 2 else t

    return _only(wanted, weight=lambda: torch.stack([summed(d * negative) for d in signals], 1))


def _embedding(layer: Any, inputs: Tensor, signals: list[Tensor], wanted: set[str]) -> Gradients:
    """The whole table for every sample; :func:`_add_embedding` writes out the rows that are used only."""
    index = inputs.reshape(len(inputs), -1)
    found = signals[0].new_zeros(len(inputs), len(signals), *layer.weight.shape)
    for term, d in enumerate(signals):
        d = d.flatten(1, -2) if d.dim() > 2 else d.unsqueeze(1)
        if layer.padding_idx is not None:
            d = d.masked_fill(index.eq(layer.padding_idx).unsqueeze(2), 0)
        found[:, term].scatter_add_(1, index.unsqueeze(2).expand_as(d), d)
    return {"weight": found}


def _add_embedding(total: Tensor, layer: Any, inputs: Tensor, d: Tensor, statistic: Statistic) -> None:
    """Signals are summed where a sample uses a row of the table more than once."""
    index = inputs.reshape(len(inputs), -1)
    samples = torch.arange(len(index), device=index.device).unsqueeze(1).expand_as(index)
    pairs, which = torch.unique(samples * len(layer.weight) + index, return_inverse=True)
    found = d.new_zeros(len(pairs), d.shape[-1]).index_add_(0, which.flatten(), d.reshape(-1, d.shape[-1]))
    used = pairs % len(layer.weight)
    if layer.padding_idx is not None:
        found[used == layer.padding_idx] = 0
    total.index_add_(0, used, statistic(found))


def _only(wanted: set[str], **makers: Callable[[], Tensor]) -> Gradients:
    return {attribute: make() for attribute, make in makers.items() if attribute in wanted}


Rule = Callable[[Any, Tensor, list[Tensor], set[str]], Gradients]
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.BatchNorm1d: _normalised,
    nn.BatchNorm2d: _normalised,
    nn.BatchNorm3d: _normalised,
    nn.LayerNorm: _normalised,
    nn.GroupNorm: _normalised,
    nn.PReLU: _prelu,
    nn.Embedding: _embedding,
}
