"""Sums over samples of a statistic of per-sample gradients: their squares (Fisher) or absolute values (MAS).

One forward pass and one backward pass of signals serve all layers that :mod:`layer_gradients` has a rule for. What
parameters are left (of a recurrent layer, of a weight that is used twice) take the general way, ``torch.func``'s vmap
of grad for those parameters alone; and where torch cannot vectorise the network, one sample after another.

Which parameter goes which way is found out, not assumed: three samples are run, and a rule holds where it gives the
gradient of each that autograd finds.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import Dataset
from tqdm import tqdm

from engrams.strategies.layer_gradients import (
    Run,
    Statistic,
    add_layer,
    add_products,
    gradients,
    has_rule,
    recorded,
)
from engrams.strategies.minibatches import (
    Inputs,
    Minibatch,
    arguments,
    attributes_kept,
    below,
    forward,
    minibatches,
    part,
    rows,
    same_random_numbers,
    trainable_parameters,
)
from engrams.strategies.steps import step_of

SAMPLES_AT_ONCE = 1000
"""Samples in one forward pass, at most. The result does not depend on it."""

ACTIVATIONS_AT_ONCE = 2**26
"""Bytes of activations that a pass may hold, whatever a training step holds: 64 MiB."""

NUMBERS_AT_ONCE = 2**26
"""Signals held at once, and per-sample gradient entries where the general way writes them out."""

LONG = 60.0
"""Seconds; a measurement that will take longer than this is told of."""

Signals = Callable[[Tensor, Tensor | None], Tensor]
"""(outputs [N, ...], y or None) -> what is pulled back through the network, [terms, N, K]: outputs as rows."""


@dataclass
class Measurement:
    """What a pass over a data set needs besides the network.

    Attributes:
        dataset: as :func:`minibatches` takes it.
        indices: the samples to use; None for all.
        batch_size: samples in a training step.
        at_once: samples in one forward pass; None for as many as take no more memory than two training steps.
        num_workers: processes that load.
        refuse: raises if the outputs, as the network gives them, are not what is measured.
        name: what is measured, for progress and messages.
        samples: how many of a minibatch's samples count; by default all do.
    """

    dataset: Dataset
    indices: Tensor | None = None
    batch_size: int = 32
    at_once: int | None = None
    num_workers: int = 0
    refuse: Callable[[Tensor], None] = lambda outputs: None
    name: str = "importance"
    samples: Callable[[Minibatch], int] = lambda batch: rows(batch.inputs)

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)  # type: ignore[arg-type]

    def minibatches(self, model: nn.Module, batch_size: int) -> Iterable[Minibatch]:
        batches = minibatches(model, self.dataset, batch_size, self.indices, self.num_workers)
        return tqdm(batches, self.name, -(-len(self) // batch_size), leave=False, delay=5, disable=None)

    def position(self, sample: int) -> int:
        """A sample's place in the data set."""
        return sample if self.indices is None else int(self.indices[sample])


@dataclass
class Plan:
    """How the parameters are measured on samples of one task."""

    layers: dict[str, nn.Module]
    """Layers that a rule holds for."""
    rest: dict[str, nn.Parameter]
    """Parameters that take the general way."""
    vectorised: bool
    """Whether torch can vectorise the network for them; else one sample after another."""
    bytes_a_sample: float
    """What a pass holds: what autograd keeps, and the signals of layers whose gradients are written out."""
    outputs: int

    def leave(self, names: Iterable[str], model: nn.Module, batch: Minibatch) -> None:
        """From now on the parameters of these layers take the general way, whatever the first samples showed."""
        left = {id(p) for name in names for p in self.layers.pop(name).parameters(recurse=False)}
        self.rest |= {name: p for name, p in trainable_parameters(model).items() if id(p) in left}
        with same_random_numbers():
            self.vectorised = _can_vectorise(model, _first_three(batch).inputs, batch.task, self.rest)


def mean_over_samples(
    model: nn.Module, measured: Measurement, signals: Signals, statistic: Statistic
) -> dict[str, Tensor]:
    """(1/N) sum_n sum_terms statistic(J_n' v_n): J_n is the Jacobian of sample n's outputs, v_n a signal.

    The gradient of a function g of the outputs f is J' (dg/df), so a signal stands for the function.

    Args:
        model: in the mode that is meant.
        measured: on what.
        signals: one or several signals for every sample; their statistics are added up.
        statistic: of each gradient entry.

    Returns:
        Parameter name -> tensor of its shape, for every parameter that requires a gradient.

    Raises:
        ValueError: an importance that is not finite; a network that has no per-sample gradients.
    """
    sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    plans: dict[int, Plan] = {}
    with same_random_numbers():
        first = next(iter(minibatches(model, measured.dataset, 3, measured.indices)))
        plans[first.task] = plan(model, first, signals, measured.refuse)
    at_once = measured.at_once or _samples_at_once(plans[first.task], measured.batch_size)
    began, count = time.perf_counter(), 0
    for number, batch in enumerate(measured.minibatches(model, at_once)):
        if batch.task not in plans:
            with same_random_numbers():
                plans[batch.task] = plan(model, batch, signals, measured.refuse)
        chosen = plans[batch.task]
        size = rows(batch.inputs)
        step = max(1, NUMBERS_AT_ONCE // chosen.outputs**2)  # at most K signals of K numbers a sample
        for start in range(0, size, step):
            some = _part(batch, start, min(start + step, size))
            with step_of("importance", rows(some.inputs)):
                _add(sums, model, chosen, some, signals, statistic)
            if not all(total.isfinite().all() for total in sums.values()):
                _refuse_not_finite(model, chosen, some, signals, statistic, measured)
        if number == 0 and (seconds := (time.perf_counter() - began) / size * len(measured)) > LONG:
            warnings.warn(_it_takes_long(measured.name, seconds, chosen.outputs), stacklevel=2)
        count += measured.samples(batch)
    return {name: total / max(1, count) for name, total in sums.items()}  # if none counts, the sum is 0


def mean_over_minibatches(
    model: nn.Module, measured: Measurement, signals: Signals, statistic: Statistic
) -> dict[str, Tensor]:
    """The mean over mini-batches of statistic(gradient of the mini-batch's *mean*): what many libraries compute.

    Args:
        model, statistic: as in :func:`mean_over_samples`.
        measured: its ``batch_size`` is that of the mini-batches; one of several tasks counts as one mini-batch a task.
        signals: exactly one signal for every sample.
    """
    parameters = trainable_parameters(model)
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    batches = 0
    for batch in measured.minibatches(model, measured.batch_size):
        size, counted = rows(batch.inputs), measured.samples(batch)
        with step_of("importance", size):
            outputs, flat = outputs_of(model, batch.inputs, batch.task)
            if batches == 0:
                measured.refuse(outputs)
            if not counted:
                continue
            (signal,) = signals(outputs.detach(), batch.y)
            found = gradients_of(flat, list(parameters.values()), signal / counted)
        for (name, total), gradient in zip(sums.items(), found, strict=True):
            if gradient is None:
                continue
            if not gradient.isfinite().all():
                raise ValueError(
                    f"the {measured.name} of {name!r} is not finite in the mini-batch of samples "
                    f"{measured.position(batch.first)} to {measured.position(batch.first + size - 1)}{_why(flat)}"
                )
            _accumulate(total, gradient, statistic)
        batches += 1
    return {name: total / max(1, batches) for name, total in sums.items()}


def outputs_of(model: nn.Module, inputs: Inputs, task: int) -> tuple[Tensor, Tensor]:
    """Returns the outputs as the network gives them, and as rows [N, K], with their graph.

    Raises:
        ValueError: outputs that are no tensor, or that have no row for every sample.
    """
    with torch.enable_grad():
        outputs = forward(model, inputs, task)
    size = rows(inputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"the network gives a {type(outputs).__name__} where outputs of shape [N, K] are expected; give the "
            f"strategy a forward() that returns the outputs alone"
        )
    if not (outputs.dim() and len(outputs) == size) and not size == 1:
        raise ValueError(
            f"the network gives outputs of shape {tuple(outputs.shape)} for {size} samples; expected are [N, K]"
        )
    if not (outputs.dim() and len(outputs) == size):  # of the one sample, squeezed
        outputs = outputs.unsqueeze(0)
    return outputs, outputs.reshape(size, -1)


# --- which way each parameter goes ------------------------------------------------------------------------------------


def plan(
    model: nn.Module,
    batch: Minibatch,
    signals: Signals = lambda outputs, y: outputs.reshape(1, len(outputs), -1),
    refuse: Callable[[Tensor], None] = lambda outputs: None,
) -> Plan:
    """Returns how the parameters are measured, found on three samples (the first ones, repeated if there are fewer).

    Args:
        model, signals: as in :func:`mean_over_samples`.
        batch: at least one sample.
        refuse: raises if the outputs, as the network gives them, are not what is measured.

    Raises:
        ValueError: no parameter that requires a gradient, or none that the outputs depend on; outputs that are not what
            is measured; samples that change each other's outputs.
    """
    parameters = trainable_parameters(model)
    if not parameters:
        raise ValueError("no parameter of the network requires a gradient: there is none whose importance to measure")
    for name, p in parameters.items():
        if p.is_complex():
            raise ValueError(f"{name!r} is complex; an importance is of real parameters. Freeze it, or keep its parts")
    probe, y, task, _ = _first_three(batch)
    outputs, _ = outputs_of(model, probe, task)
    if not outputs.is_floating_point():
        raise ValueError(f"the network gives outputs of type {outputs.dtype}; an importance needs floating-point ones")
    if not outputs.requires_grad:
        why = " (in torch.inference_mode() nothing has one)" if torch.is_inference_mode_enabled() else ""
        raise ValueError(f"the network's outputs depend on no parameter that requires a gradient{why}")
    refuse(outputs.detach())
    _refuse_batch_statistics(model, probe, task)
    layers = _layers_with_rule(model)
    held = _Saved()
    with recorded(layers) as calls, held:
        _, flat = outputs_of(model, probe, task)
    names = {id(p): name for name, p in parameters.items()}

    def named(chosen: Callable[[str, str], bool]) -> set[str]:
        """The trainable parameters of layers with a rule, by the layer's name and the parameter's attribute."""
        return {
            names[id(p)]
            for layer_name, layer in layers.items()
            for attribute, p in layer.named_parameters(recurse=False)
            if id(p) in names and chosen(layer_name, attribute)
        }

    good = _explained(layers, calls, flat)
    explained = named(lambda layer, attribute: below(layer, attribute) in good)
    # A layer that did not run has no say on these samples; on others it may run, and is measured if it does.
    idle = named(lambda layer, attribute: layer not in calls)
    used = gradients_of(flat, list(parameters.values()), torch.ones_like(flat))
    idle -= {name for name, gradient in zip(parameters, used, strict=True) if gradient is not None}
    rest = {name: p for name, p in parameters.items() if name not in explained | idle}
    terms = len(signals(outputs.detach(), y))
    kept_signals = sum(
        terms * runs[0].output.nbytes
        for name, runs in calls.items()
        if not _on_rows(layers[name], runs[0]) and isinstance(runs[0].output, Tensor)
    )
    return Plan(
        layers={n: m for n, m in layers.items() if any(names.get(id(p)) in explained | idle for p in m.parameters())},
        rest=rest,
        vectorised=bool(rest) and _can_vectorise(model, probe, task, rest),
        bytes_a_sample=(held.bytes(parameters.values()) + kept_signals) / 3,
        outputs=flat.shape[1],
    )


def _first_three(batch: Minibatch) -> Minibatch:
    """The first three samples; the first ones again where there are fewer."""
    return _chosen(batch, torch.arange(3) % rows(batch.inputs))


def _layers_with_rule(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have a rule and a trainable parameter that no other layer shares, by the module's name."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners[id(p)] = owners.get(id(p), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if has_rule(module) and any(p.requires_grad and owners[id(p)] == 1 for p in module.parameters(recurse=False))
    }


def _explained(layers: dict[str, nn.Module], calls: dict[str, list[Run]], outputs: Tensor) -> set[str]:
    """Names (module and attribute) of the parameters whose gradient of each sample the layer's rule gives."""
    runs = {
        name: found[0]
        for name, found in calls.items()
        if len(found) == 1
        and isinstance(found[0].output, Tensor)
        and found[0].output.requires_grad
        and isinstance(found[0].inputs, Tensor)
        and found[0].inputs.dim() > 0
        and len(found[0].output) == len(found[0].inputs) == len(outputs)
    }
    if not runs:
        return set()
    owned = {
        below(name, attribute): p
        for name in runs
        for attribute, p in layers[name].named_parameters(recurse=False)
        if p.requires_grad
    }
    good = set(owned)
    v = torch.arange(1, outputs.numel() + 1, device=outputs.device).cos().view_as(outputs).to(outputs)
    for sample in range(len(outputs)):
        # Of one sample only: where dimensions are swapped or samples mixed, its gradient is not found in its row.
        signal = torch.zeros_like(v)
        signal[sample] = v[sample]
        expected = dict(zip(owned, gradients_of(outputs, list(owned.values()), signal), strict=True))
        try:
            at_layers = torch.autograd.grad(
                outputs, [run.output for run in runs.values()], signal, retain_graph=True, allow_unused=True
            )
        except RuntimeError:  # reentrant checkpointing
            return set()
        row = slice(sample, sample + 1)
        for (name, run), d in zip(runs.items(), at_layers, strict=True):
            wanted = {attribute for attribute in ("weight", "bias") if below(name, attribute) in good}
            try:
                found = {} if d is None else gradients(layers[name], run.inputs[row], [d[row]], wanted)
            except (RuntimeError, IndexError, ValueError):
                good -= {below(name, attribute) for attribute in wanted}
                continue
            for attribute in wanted:
                here = below(name, attribute)
                gradient, by_rule = expected[here], found.get(attribute)
                if gradient is None and by_rule is None:
                    continue
                if gradient is None:
                    gradient = torch.zeros_like(owned[here])
                if gradient.is_sparse:
                    gradient = gradient.to_dense()
                if by_rule is None or not _same(by_rule[0, 0], gradient):
                    good.discard(here)
    return good


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 2e-2
    return torch.allclose(found, expected, rtol=10 * tolerance, atol=tolerance * _largest(expected), equal_nan=True)


def _largest(values: Tensor) -> float:
    """The largest absolute value; NaN, which is told of where it is measured, is none."""
    return values.abs().nan_to_num().max().item()


def _refuse_batch_statistics(model: nn.Module, probe: Inputs, task: int) -> None:
    """A sample has a gradient of its own only where the other samples of its batch do not change its outputs."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name!r} is a {type(module).__name__} without running statistics (track_running_stats=False): it "
                f"normalises by the batch, so that no sample has a gradient of its own. Let it track running "
                f"statistics, use group or layer norm, or ask for the 'batched' kind"
            )
    found = []
    for order in ([0, 1, 2], [0, 0, 0], [0, 1, 2]):
        with torch.no_grad(), same_random_numbers():  # a network that draws random numbers draws the same ones
            found.append(outputs_of(model, part(probe, torch.tensor(order)), task)[1][0])

    def differ(a: Tensor, b: Tensor) -> bool:
        return not torch.allclose(a, b, rtol=1e-2, atol=1e-3 * _largest(a), equal_nan=True)

    if differ(found[0], found[2]):
        raise ValueError(
            "the network's outputs for the same samples change from one pass to the next (it keeps a state?), so that "
            "no sample has a gradient of its own: let it begin afresh with every batch in eval mode"
        )
    if differ(found[0], found[1]):
        raise ValueError(
            "a sample's outputs depend on the other samples of its batch (normalisation by the batch?), so that no "
            "sample has a gradient of its own: normalise by running statistics, or ask for the 'batched' kind"
        )


class _Saved:
    """Within: the bytes that autograd keeps for the backward pass."""

    def __init__(self) -> None:
        self.tensors: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        self.tensors[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def bytes(self, parameters: Iterable[Tensor]) -> int:
        own = {p.untyped_storage().data_ptr() for p in parameters}
        return sum(size for pointer, size in self.tensors.items() if pointer not in own)

    def __enter__(self) -> None:
        self.hooks.__enter__()

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)


def _samples_at_once(chosen: Plan, batch_size: int) -> int:
    """As many as a pass can hold in the memory of two training steps, or in a little in any case."""
    little = int(ACTIVATIONS_AT_ONCE / max(1.0, chosen.bytes_a_sample))
    return max(1, min(SAMPLES_AT_ONCE, max(2 * batch_size, little)))


# --- the ways ---------------------------------------------------------------------------------------------------------


def _add(
    sums: dict[str, Tensor], model: nn.Module, chosen: Plan, batch: Minibatch, signals: Signals, statistic: Statistic
) -> None:
    with recorded(chosen.layers) as calls:
        given, outputs = outputs_of(model, batch.inputs, batch.task)
    # A layer that runs for some samples only, or more than once, if not for the first ones.
    if odd := [name for name, runs in calls.items() if len(runs) > 1 or len(runs[0].output) != len(outputs)]:
        chosen.leave(odd, model, batch)
        _add(sums, model, chosen, batch, signals, statistic)
        return
    v = signals(given.detach(), batch.y)
    runs = {name: found[0] for name, found in calls.items()}
    of_rows: dict[str, Tensor] = {}
    written_out: dict[str, list[Tensor]] = {}
    for signal in v if runs else ():
        at_layers = torch.autograd.grad(
            outputs, [run.output for run in runs.values()], signal, retain_graph=True, allow_unused=True
        )
        for name, d in zip(runs, at_layers, strict=True):
            if d is None:  # it ran, but the outputs do not depend on it
                continue
            if not _on_rows(chosen.layers[name], runs[name]):
                written_out.setdefault(name, []).append(d)
            elif name in of_rows:
                _accumulate(of_rows[name], d, statistic)
            else:
                of_rows[name] = statistic(d)
    del given, outputs
    ruled = {name: total for name, total in sums.items() if name not in chosen.rest}
    names = {id(p): name for name, p in trainable_parameters(model).items()}
    for name, d in of_rows.items():
        add_products(_of_layer(ruled, names, chosen.layers[name]), statistic(runs[name].inputs), d)
    for name, found in written_out.items():
        layer = chosen.layers[name]
        add_layer(_of_layer(ruled, names, layer), layer, runs[name].inputs, found, statistic)
    if not chosen.rest:
        return
    v = v.transpose(0, 1)  # [N, terms, K]
    if chosen.vectorised:
        _add_by_vmap(sums, model, chosen.rest, batch, v, statistic)
    else:
        _add_one_by_one(sums, model, chosen.rest, batch, v, statistic)


def _on_rows(layer: nn.Module, run: Run) -> bool:
    return isinstance(layer, nn.Linear) and run.inputs.dim() == 2


def _of_layer(sums: dict[str, Tensor], names: dict[int, str], layer: nn.Module) -> dict[str, Tensor]:
    """Attribute of the layer -> its sum."""
    return {
        attribute: sums[names[id(p)]]
        for attribute, p in layer.named_parameters(recurse=False)
        if names.get(id(p)) in sums
    }


def _accumulate(total: Tensor, found: Tensor, statistic: Statistic) -> None:
    """total += statistic(found), in one pass over memory where torch has one."""
    if statistic is torch.square:
        total.addcmul_(found, found)
    else:
        total += statistic(found)


def _add_by_vmap(
    sums: dict[str, Tensor],
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: Minibatch,
    v: Tensor,
    statistic: Statistic,
) -> None:
    """The general way: the per-sample gradients written out, a chunk at a time."""
    at_once = max(1, NUMBERS_AT_ONCE // 4 // (v.shape[1] * sum(p.numel() for p in parameters.values())))
    for start in range(0, len(v), at_once):
        chosen = slice(start, start + at_once)
        found = _vectorised(model, part(batch.inputs, chosen), batch.task, parameters, v[chosen])
        for name, gradient in found.items():  # [n, terms, *shape]
            sums[name] += statistic(gradient.detach()).sum((0, 1))


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

    with attributes_kept(model):  # what vmap hands to the network must not stay in it
        return vmap(gradients_of_one, in_dims=(0, *batched))(v, *leaves)


def _add_one_by_one(
    sums: dict[str, Tensor],
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: Minibatch,
    v: Tensor,
    statistic: Statistic,
) -> None:
    """Right for every network, and slow: a forward pass a sample, and a backward pass a signal."""
    for n in range(len(v)):
        _, outputs = outputs_of(model, part(batch.inputs, slice(n, n + 1)), batch.task)
        for signal in v[n]:
            found = gradients_of(outputs, list(parameters.values()), signal.unsqueeze(0))
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    sums[name] += statistic(gradient.to_dense() if gradient.is_sparse else gradient)


def gradients_of(outputs: Tensor, parameters: Sequence[Tensor], signal: Tensor) -> Sequence[Tensor | None]:
    """The gradients of the outputs under a signal; None where the outputs do not depend on a parameter."""
    try:
        return torch.autograd.grad(outputs, parameters, signal, retain_graph=True, allow_unused=True)
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


def _can_vectorise(model: nn.Module, probe: Inputs, task: int, rest: dict[str, nn.Parameter]) -> bool:
    """Whether torch can vectorise the network and finds what autograd finds; if not, how slow that is is told once."""
    try:
        _, outputs = outputs_of(model, probe, task)
        v = torch.arange(1, outputs.numel() + 1, device=outputs.device).cos().view_as(outputs).to(outputs)
        found = _vectorised(model, probe, task, rest, v.unsqueeze(1))
        expected = gradients_of(outputs, list(rest.values()), v)
        for name, gradient in zip(rest, expected, strict=True):
            if not _same(found[name].sum((0, 1)), torch.zeros_like(rest[name]) if gradient is None else gradient):
                raise ValueError("it then finds other gradients")
        return True
    except Exception as error:  # whatever torch cannot vectorise; the slow way asks the network itself
        reason = str(error).strip().split("\n")[0][:120]
    began = time.perf_counter()
    _, outputs = outputs_of(model, part(probe, slice(0, 1)), task)
    gradients_of(outputs, list(rest.values()), torch.ones_like(outputs))
    if model not in _told_of:
        _told_of.add(model)
        names = ", ".join(repr(name) for name in list(rest)[:3]) + (", ..." if len(rest) > 3 else "")
        warnings.warn(
            f"torch cannot vectorise this network ({reason}): the importance of {names} is measured one sample after "
            f"another, about {1000 * (time.perf_counter() - began):.2g} ms a sample and signal (the exact Fisher has a "
            f"signal for every class). fisher_samples, or another kind, takes less",
            stacklevel=2,
        )
    return False


# --- what is said -----------------------------------------------------------------------------------------------------


def _part(batch: Minibatch, start: int, stop: int) -> Minibatch:
    if start == 0 and stop == rows(batch.inputs):
        return batch
    return _chosen(batch, slice(start, stop))._replace(first=batch.first + start)


def _chosen(batch: Minibatch, chosen: slice | Tensor) -> Minibatch:
    return batch._replace(inputs=part(batch.inputs, chosen), y=part(batch.y, chosen))


def _refuse_not_finite(
    model: nn.Module,
    chosen: Plan,
    batch: Minibatch,
    signals: Signals,
    statistic: Statistic,
    measured: Measurement,
) -> None:
    """Raises a ValueError that names the sample and the parameter."""
    for n in range(rows(batch.inputs)):
        one = _part(batch, n, n + 1)
        sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
        _add(sums, model, chosen, one, signals, statistic)
        for name, total in sums.items():
            if not total.isfinite().all():
                _, outputs = outputs_of(model, one.inputs, one.task)
                raise ValueError(
                    f"the {measured.name} of {name!r} is not finite for sample {measured.position(one.first)}"
                    f"{_why(outputs)}"
                )
    name = next(name for name, total in sums.items())
    raise ValueError(f"the {measured.name} is too large for its type ({sums[name].dtype}): use a larger one")


def _why(outputs: Tensor) -> str:
    if outputs.isfinite().all():
        return f": it is too large for its type ({outputs.dtype})"
    return ": the network's outputs are not finite there. Look at that sample, and whether training has diverged"


def _it_takes_long(name: str, seconds: float, outputs: int) -> str:
    return (
        f"the {name} will take about {seconds:.0f} s. The exact Fisher has a backward pass for every one of {outputs} "
        f"outputs: fisher_samples measures on fewer samples, fisher='sampled' has one backward pass"
    )
