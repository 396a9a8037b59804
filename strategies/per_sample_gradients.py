"""Sums over samples of a statistic of per-sample gradients: their squares (Fisher) or absolute values (MAS).

One forward pass and one backward pass of signals serve all layers that :mod:`layer_gradients` has a rule for. What
parameters are left (of a recurrent layer, of a weight that is used twice) take the general way, ``torch.func``'s vmap
of grad for those parameters alone; and where torch cannot vectorise the network, one sample after another.

Which parameter goes which way is :mod:`gradient_plan`'s to find out; the general way is :mod:`general_gradients`'.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from engrams.strategies.general_gradients import add_by_vmap, add_one_by_one, gradients_of, outputs_of
from engrams.strategies.gradient_plan import Plan, Signals, on_rows, part_of, plan
from engrams.strategies.layer_gradients import (
    Statistic,
    add_layer,
    add_products,
    recorded,
)
from engrams.strategies.minibatches import Minibatch, minibatches, rows
from engrams.strategies.networks import trainable_parameters
from engrams.strategies.precision import wide
from engrams.strategies.steps import step_of
from engrams.strategies.undisturbed import same_random_numbers

SAMPLES_AT_ONCE = 1000
"""Samples in one forward pass, at most. The result does not depend on it."""

ACTIVATIONS_AT_ONCE = 2**26
"""Bytes of activations that a pass may hold, whatever a training step holds: 64 MiB."""

NUMBERS_AT_ONCE = 2**26
"""Numbers in all signals that are held at once: 256 MiB of float32."""

LONG = 60.0
"""Seconds; a measurement that will take longer than this is told of."""


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
        quicker: what would take less time, for a message.
    """

    dataset: Dataset
    indices: Tensor | None
    batch_size: int
    at_once: int | None
    num_workers: int
    refuse: Callable[[Tensor], None] = lambda outputs: None
    name: str = "importance"
    quicker: str = "measure it on fewer samples"

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)  # type: ignore[arg-type]

    def minibatches(self, model: nn.Module, batch_size: int, whole: bool = False) -> Iterable[Minibatch]:
        batches = minibatches(model, self.dataset, batch_size, self.indices, self.num_workers, whole)
        return tqdm(batches, self.name, -(-len(self) // batch_size), leave=False, delay=5, disable=None)

    def position(self, sample: int) -> int:
        """Returns a sample's place in the data set."""
        return sample if self.indices is None else int(self.indices[sample])


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
        Parameter name -> tensor of its shape, in float32 at least, for every parameter that requires a gradient.

    Raises:
        ValueError: an importance that is not finite; a network that has no per-sample gradients.
    """
    sums = zeros(trainable_parameters(model))
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
            some = part_of(batch, start, min(start + step, size))
            with step_of("importance", rows(some.inputs)):
                count += _add(sums, model, chosen, some, signals, statistic)
            if not all(total.isfinite().all() for total in sums.values()):
                _refuse_not_finite(model, chosen, some, signals, statistic, measured)
        if number == 0 and (seconds := (time.perf_counter() - began) / size * len(measured)) > LONG:
            warnings.warn(f"the {measured.name} will take about {seconds:.0f} s; {measured.quicker}", stacklevel=2)
    return {name: total / max(1, count) for name, total in sums.items()}  # if none counts, the sum is 0


def mean_over_minibatches(
    model: nn.Module, measured: Measurement, signals: Signals, statistic: Statistic
) -> dict[str, Tensor]:
    """Returns the mean over mini-batches of statistic(gradient of the mini-batch's *mean*), as many libraries do.

    Args:
        model, statistic: as in :func:`mean_over_samples`.
        measured: its ``batch_size`` is that of the mini-batches; one of several tasks counts as one mini-batch a task.
        signals: exactly one signal for every sample.
    """
    parameters = trainable_parameters(model)
    sums = zeros(parameters)
    batches = 0
    for batch in measured.minibatches(model, measured.batch_size, whole=True):
        size = rows(batch.inputs)
        with step_of("importance", size):
            outputs, flat = outputs_of(model, batch.inputs, batch.task)
            if batches == 0:
                measured.refuse(outputs)
            (signal,), counted = signals(outputs.detach(), batch)
            if not counted:
                continue
            found = gradients_of(flat, list(parameters.values()), signal / counted)
        for (name, total), gradient in zip(sums.items(), found, strict=True):
            if gradient is None:
                continue
            _accumulate(total, gradient, statistic)
            if not total.isfinite().all():
                raise ValueError(
                    f"the {measured.name} of {name!r} is not finite in the mini-batch of samples "
                    f"{measured.position(batch.first)} to {measured.position(batch.first + size - 1)}"
                    f"{_why(flat, batch.y)}"
                )
        batches += 1
    return {name: total / max(1, batches) for name, total in sums.items()}


def zeros(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Returns what is added to: a 0 of float32 at least for every number of every parameter."""
    return {name: torch.zeros_like(wide(p)) for name, p in parameters.items()}


def _samples_at_once(chosen: Plan, batch_size: int) -> int:
    """As many as a pass can hold in the memory of two training steps, or in a little in any case."""
    little = int(ACTIVATIONS_AT_ONCE / max(1.0, chosen.bytes_a_sample))
    return min(SAMPLES_AT_ONCE, max(2 * batch_size, little))


# --- the ways ---------------------------------------------------------------------------------------------------------


def _add(
    sums: dict[str, Tensor], model: nn.Module, chosen: Plan, batch: Minibatch, signals: Signals, statistic: Statistic
) -> int:
    """Adds the statistics of a minibatch; returns how many of its samples count."""
    with recorded(chosen.layers) as calls:
        given, outputs = outputs_of(model, batch.inputs, batch.task)
    if odd := chosen.otherwise(calls, outputs):
        chosen.leave(odd, model, batch)
        return _add(sums, model, chosen, batch, signals, statistic)
    v, counted = signals(given.detach(), batch)
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
            if not on_rows(chosen.layers[name], runs[name]):
                written_out.setdefault(name, []).append(d)
            elif name in of_rows:
                _accumulate(of_rows[name], d, statistic)
            else:
                of_rows[name] = statistic(wide(d))
    del given, outputs
    ruled = {name: total for name, total in sums.items() if name not in chosen.rest}
    names = {id(p): name for name, p in trainable_parameters(model).items()}
    for name, d in of_rows.items():
        add_products(_of_layer(ruled, names, chosen.layers[name]), statistic(wide(runs[name].inputs)), d)
    for name, found in written_out.items():
        layer = chosen.layers[name]
        add_layer(_of_layer(ruled, names, layer), layer, runs[name].inputs, found, statistic)
    if not chosen.rest:
        return counted
    v = v.transpose(0, 1)  # [N, terms, K]
    if chosen.vectorised:
        add_by_vmap(sums, model, chosen.rest, batch, v, statistic)
    else:
        add_one_by_one(sums, model, chosen.rest, batch, v, statistic)
    return counted


def _of_layer(sums: dict[str, Tensor], names: dict[int, str], layer: nn.Module) -> dict[str, Tensor]:
    """Attribute of the layer -> its sum."""
    return {
        attribute: sums[names[id(p)]]
        for attribute, p in layer.named_parameters(recurse=False)
        if names.get(id(p)) in sums
    }


def _accumulate(total: Tensor, found: Tensor, statistic: Statistic) -> None:
    """total += statistic(found), in one pass over memory where torch has one."""
    found = wide(found)
    if statistic is torch.square:
        total.addcmul_(found, found)
    else:
        total += statistic(found)


# --- what is said -----------------------------------------------------------------------------------------------------


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
        one = part_of(batch, n, n + 1)
        sums = zeros(trainable_parameters(model))
        _add(sums, model, chosen, one, signals, statistic)
        for name, total in sums.items():
            if not total.isfinite().all():
                _, outputs = outputs_of(model, one.inputs, one.task)
                raise ValueError(
                    f"the {measured.name} of {name!r} is not finite for sample {measured.position(one.first)}"
                    f"{_why(outputs, one.y)}"
                )
    name = next(name for name, total in sums.items())
    raise ValueError(f"the {measured.name} is too large for its type ({sums[name].dtype}): use a larger one")


def _why(outputs: Tensor, y: object) -> str:
    if not outputs.isfinite().all():
        return ": the network's outputs are not finite there. Look at that sample, and whether training has diverged"
    if isinstance(y, Tensor) and not y.isfinite().all():
        return ": its target is not finite. Look at the data"
    return f": it is too large for its type ({outputs.dtype})"
