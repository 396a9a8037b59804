"""The general way to the gradient of each sample: for whatever parameters, of whatever network.

``torch.func``'s vmap of grad where torch can vectorise the network, and otherwise one sample after another.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from engrams.strategies.layer_gradients import Statistic
from engrams.strategies.minibatches import Inputs, Minibatch, arguments, forward, part, rows
from engrams.strategies.networks import below, refuse_no_tensor, some_of
from engrams.strategies.precision import wide
from engrams.strategies.undisturbed import attributes_kept

NUMBERS_AT_ONCE = 2**24
"""Per-sample gradient entries that are written out at once."""


def outputs_of(model: nn.Module, inputs: Inputs, task: int) -> tuple[Tensor, Tensor]:
    """Returns the outputs as the network gives them, and as rows [N, K], with their graph.

    Raises:
        ValueError: outputs that are no tensor, or that have no row for every sample.
    """
    with torch.enable_grad():
        outputs = forward(model, inputs, task)
    size = rows(inputs)
    refuse_no_tensor(outputs)
    if not (outputs.dim() and len(outputs) == size) and not size == 1:
        raise ValueError(
            f"the network gives outputs of shape {tuple(outputs.shape)} for {size} samples; expected are [N, K] or "
            f"[N, K, ...], a row for every sample. If they are rows of tokens, or have the time first, give the "
            f"strategy a forward() that puts the samples first"
        )
    if not (outputs.dim() and len(outputs) == size):  # of the one sample, squeezed
        outputs = outputs.unsqueeze(0)
    return outputs, outputs.reshape(size, -1)


def add_by_vmap(
    sums: dict[str, Tensor],
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: Minibatch,
    v: Tensor,
    statistic: Statistic,
) -> None:
    """Adds up per-sample gradients in the general way: written out, a chunk at a time."""
    at_once = max(1, NUMBERS_AT_ONCE // (v.shape[1] * sum(p.numel() for p in parameters.values())))
    for start in range(0, len(v), at_once):
        chosen = slice(start, start + at_once)
        found = _vectorised(model, part(batch.inputs, chosen), batch.task, parameters, v[chosen])
        for name, gradient in found.items():  # [n, terms, *shape]
            sums[name] += statistic(wide(gradient.detach())).sum((0, 1))


def _vectorised(
    model: nn.Module, inputs: Inputs, task: int, parameters: dict[str, nn.Parameter], v: Tensor
) -> dict[str, Tensor]:
    """The gradients of every sample under each of its signals v [N, terms, K]: name -> [N, terms, *shape]."""
    names = {id(p): name for name, p in parameters.items()}
    # Every place that holds a parameter; tied ones have several.
    places = {
        below(module_name, attribute): names[id(p)]
        for module_name, module in model.named_modules()
        for attribute, p in module.named_parameters(recurse=False)
        if id(p) in names
    }
    leaves, form = tree_flatten(inputs)
    batched = tuple(0 if isinstance(leaf, Tensor) and leaf.dim() else None for leaf in leaves)

    def gradients_of_one(v_n, *leaves_n):
        one = [leaf.unsqueeze(0) if axis == 0 else leaf for leaf, axis in zip(leaves_n, batched, strict=True)]

        def outputs_of_one(parameters):
            placed = {place: parameters[name] for place, name in places.items()}
            called = arguments(model, tree_unflatten(one, form), task)
            # functional_call's own handling of tied weights does not restore a module that is registered twice.
            return functional_call(model, placed, called, tie_weights=False).reshape(-1)

        _, pull_back = vjp(outputs_of_one, {name: p.detach() for name, p in parameters.items()})
        return vmap(pull_back)(v_n)[0]

    with attributes_kept(model.modules()):  # what vmap hands to the network must not stay in it
        return vmap(gradients_of_one, in_dims=(0, *batched))(v, *leaves)


def add_one_by_one(
    sums: dict[str, Tensor],
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: Minibatch,
    v: Tensor,
    statistic: Statistic,
) -> None:
    """Adds up per-sample gradients in the way that is right for every network, and slow.

    It takes a forward pass a sample, and a backward pass a signal.
    """
    for n in range(len(v)):
        _, outputs = outputs_of(model, part(batch.inputs, slice(n, n + 1)), batch.task)
        for signal in v[n]:
            found = gradients_of(outputs, list(parameters.values()), signal.unsqueeze(0))
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    sums[name] += statistic(wide(gradient))


def gradients_of(outputs: Tensor, parameters: Sequence[Tensor], signal: Tensor) -> Sequence[Tensor | None]:
    """Returns the gradients of the outputs under a signal, dense; None where these do not depend on a parameter."""
    try:
        found = torch.autograd.grad(outputs, parameters, signal, retain_graph=True, allow_unused=True)
        return [gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient for gradient in found]
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower():
            raise
    before = [p.grad for p in parameters]  # reentrant checkpointing is not compatible with autograd.grad
    try:
        for p in parameters:
            p.grad = None
        torch.autograd.backward(outputs, signal, retain_graph=True)
        return [p.grad for p in parameters]
    finally:
        for p, gradient in zip(parameters, before, strict=True):
            p.grad = gradient


_told_of: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def can_vectorise(
    model: nn.Module, probe: Inputs, task: int, rest: dict[str, nn.Parameter], lowest: torch.dtype
) -> bool:
    """Whether torch can vectorise the network and finds what autograd finds; if not, how slow that is is told once.

    ``lowest`` is the type of lowest precision that the network computes in.
    """
    try:
        _, outputs = outputs_of(model, probe, task)
        v = torch.arange(1, outputs.numel() + 1, device=outputs.device).cos().view_as(outputs).to(outputs)
        found = _vectorised(model, probe, task, rest, v.unsqueeze(1))
        expected = {
            name: torch.zeros_like(p) if gradient is None else gradient
            for (name, p), gradient in zip(rest.items(), gradients_of(outputs, list(rest.values()), v), strict=True)
        }
        scale = max(map(largest, expected.values()))
        for name, gradient in expected.items():
            if not same(found[name].sum((0, 1)), gradient, lowest, scale):
                raise ValueError("it then finds other gradients")
        return True
    except Exception as error:  # whatever torch cannot vectorise; the slow way asks the network itself
        reason = str(error).strip().split("\n")[0][:120]
    began = time.perf_counter()
    _, outputs = outputs_of(model, part(probe, slice(0, 1)), task)
    gradients_of(outputs, list(rest.values()), torch.ones_like(outputs))
    if model not in _told_of:
        _told_of.add(model)
        names = some_of(rest)
        warnings.warn(
            f"torch cannot vectorise this network ({reason}): the importance of {names} is measured one sample after "
            f"another, about {1000 * (time.perf_counter() - began):.2g} ms a sample and signal (the exact Fisher has a "
            f"signal for every class). On fewer samples (EWC's fisher_samples, MAS's importance_data) it takes less",
            stacklevel=2,
        )
    return False


def same(found: Tensor, expected: Tensor, lowest: torch.dtype, scale: float) -> bool:
    """Tells whether two gradients are the same but for the rounding of the type that they were computed in.

    ``scale`` is the size of what cancels in them. A bias before a layer that subtracts the mean has a gradient of 0 but
    for rounding, which says nothing relatively to itself.
    """
    if found.shape != expected.shape:
        return False
    found, expected = wide(found), wide(expected)
    tolerance = 1e-4 if lowest in (torch.float32, torch.float64) else 2e-2
    scale = max(largest(expected), scale / 10)
    return torch.allclose(found, expected, rtol=10 * tolerance, atol=tolerance * scale, equal_nan=True)


def largest(values: Tensor) -> float:
    """Returns the largest absolute value, or 0 of an empty tensor. NaN counts as 0: a measurement reports it itself."""
    return values.abs().nan_to_num().max().item() if values.numel() else 0.0
