"""Which way each parameter's gradients are found: by its layer's rule, or the general way.

It is found out, not assumed: three samples are run, and a rule holds where it gives the gradient of each that autograd
finds. The same pass shows what a sample takes of memory, and whether the samples of a batch have gradients of their
own at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engrams.strategies.general_gradients import can_vectorise, gradients_of, largest, outputs_of, same
from engrams.strategies.layer_gradients import Run, gradients, has_rule, recorded
from engrams.strategies.minibatches import Inputs, Minibatch, Whole, part, rows
from engrams.strategies.networks import below, trainable_parameters
from engrams.strategies.undisturbed import same_random_numbers

Signals = Callable[[Tensor, Minibatch], tuple[Tensor, int]]
"""(outputs [N, ...], their minibatch) -> what is pulled back through the network, [terms, N, K]: outputs as rows; and
how many of the samples count."""


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
    lowest: torch.dtype
    """Type of lowest precision that the network computes in: lower than its parameters' under ``torch.autocast``."""
    uses: Counter[int]
    """How often the first samples' outputs use each parameter, by its id."""

    def otherwise(self, calls: dict[str, list[Run]], outputs: Tensor) -> list[str]:
        """Returns the layers that these samples run otherwise than the first ones, so that no rule is known to hold.

        More than once, for some samples only, not seen before, or where no hook sees it: by ``forward``, as a function.
        """
        uses = uses_in(outputs)
        return [
            name
            for name, layer in self.layers.items()
            for runs in [calls.get(name, [])]
            if any(uses[id(p)] not in (0, self.uses[id(p)]) for p in layer.parameters(recurse=False))
            or len(runs) > 1
            or any(len(run.output) != len(outputs) for run in runs)
        ]

    def leave(self, names: Iterable[str], model: nn.Module, batch: Minibatch) -> None:
        """Makes the parameters of these layers take the general way from now on, whatever the first samples showed."""
        left = {id(p) for name in names for p in self.layers.pop(name).parameters(recurse=False)}
        self.rest |= {name: p for name, p in trainable_parameters(model).items() if id(p) in left}
        with same_random_numbers():
            self.vectorised = can_vectorise(model, _first_three(batch).inputs, batch.task, self.rest, self.lowest)


def plan(
    model: nn.Module,
    batch: Minibatch,
    signals: Signals = lambda outputs, batch: (outputs.reshape(1, len(outputs), -1), len(outputs)),
    refuse: Callable[[Tensor], None] = lambda outputs: None,
) -> Plan:
    """Returns how the parameters are measured, found on three samples (the first ones, repeated if there are fewer).

    A sample that comes alone because it is not made of tensors goes the general way.

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
    batch = _first_three(batch)
    probe, task = batch.inputs, batch.task
    outputs, _ = outputs_of(model, probe, task)
    if not outputs.is_floating_point():
        raise ValueError(f"the network gives outputs of type {outputs.dtype}; an importance needs floating-point ones")
    if not outputs.requires_grad:
        why = " (in torch.inference_mode() nothing has one)" if torch.is_inference_mode_enabled() else ""
        raise ValueError(f"the network's outputs depend on no parameter that requires a gradient{why}")
    refuse(outputs.detach())
    _refuse_batch_statistics(model, probe, task)
    apart = not isinstance(probe, Whole)
    layers = _layers_with_rule(model) if apart else {}
    held = _Saved()
    with recorded(layers) as calls, held:
        _, flat = outputs_of(model, probe, task)
    names = {id(p): name for name, p in parameters.items()}

    def named(chosen: Callable[[str, str], bool]) -> set[str]:
        """Returns the trainable parameters of layers with a rule, by the layer's name and the parameter's attribute."""
        return {
            names[id(p)]
            for layer_name, layer in layers.items()
            for attribute, p in layer.named_parameters(recurse=False)
            if id(p) in names and chosen(layer_name, attribute)
        }

    lowest = held.lowest(flat.dtype)
    good = _explained(layers, calls, flat, lowest)
    explained = named(lambda layer, attribute: below(layer, attribute) in good)
    # A layer that did not run has no say on these samples; where it does on others, it takes the general way.
    idle = named(lambda layer, attribute: layer not in calls)
    used = gradients_of(flat, list(parameters.values()), torch.ones_like(flat))
    idle -= {name for name, gradient in zip(parameters, used, strict=True) if gradient is not None}
    rest = {name: p for name, p in parameters.items() if name not in explained | idle}
    terms = len(signals(outputs.detach(), batch)[0])
    kept_signals = sum(
        terms * runs[0].output.nbytes for name, runs in calls.items() if not on_rows(layers[name], runs[0])
    )
    return Plan(
        layers={n: m for n, m in layers.items() if any(names.get(id(p)) in explained | idle for p in m.parameters())},
        rest=rest,
        vectorised=bool(rest) and apart and can_vectorise(model, probe, task, rest, lowest),
        bytes_a_sample=(held.bytes(parameters.values()) + kept_signals) / rows(probe),
        outputs=flat.shape[1],
        lowest=lowest,
        uses=uses_in(flat),
    )


def uses_in(outputs: Tensor) -> Counter[int]:
    """Returns how often the graph of these outputs uses each parameter, by its id."""
    found: Counter[int] = Counter()
    left, met = [outputs.grad_fn], {outputs.grad_fn, None}
    while left:
        for node, _ in getattr(left.pop(), "next_functions", ()):
            if node is not None and node.name() == "torch::autograd::AccumulateGrad":
                found[id(node.variable)] += 1
            elif node not in met:
                met.add(node)
                left.append(node)
    return found


def _first_three(batch: Minibatch) -> Minibatch:
    """The first three samples; the first ones again where there are fewer."""
    if isinstance(batch.inputs, Whole):
        return batch
    return samples_of(batch, torch.arange(3) % rows(batch.inputs))


def _layers_with_rule(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have a rule and a trainable parameter, and share none with another, by the module's name.

    Where two layers share one, a sample's gradient is the sum of theirs, though only one may run on the first samples.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners[id(p)] = owners.get(id(p), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if has_rule(module)
        and any(p.requires_grad for p in module.parameters(recurse=False))
        and all(owners[id(p)] == 1 for p in module.parameters(recurse=False))
    }


def _explained(
    layers: dict[str, nn.Module], calls: dict[str, list[Run]], outputs: Tensor, lowest: torch.dtype
) -> set[str]:
    """Names (module and attribute) of the parameters whose gradient of each sample the layer's rule gives."""
    runs = {
        name: found[0]
        for name, found in calls.items()
        if len(found) == 1
        and found[0].output.requires_grad
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
                sizes = {} if d is None else gradients(layers[name], run.inputs[row], [d[row].abs()], wanted)
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
                if by_rule is None or not same(by_rule[0, 0], gradient, lowest, largest(sizes[attribute])):
                    good.discard(here)
    return good


def _refuse_batch_statistics(model: nn.Module, probe: Inputs, task: int) -> None:
    """A sample has a gradient of its own only where the other samples of its batch do not change its outputs."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name!r} is a {type(module).__name__} without running statistics (track_running_stats=False): it "
                f"normalises by the batch, so that no sample has a gradient of its own. Let it track running "
                f"statistics, use group or layer norm, or ask for the 'batched' kind"
            )

    def outputs(*order: int) -> Tensor:
        with torch.no_grad(), same_random_numbers():  # a network that draws random numbers draws the same ones
            return outputs_of(model, part(probe, torch.tensor(order)), task)[1]

    def differ(a: Tensor, b: Tensor) -> bool:
        return not torch.allclose(a, b, rtol=1e-2, atol=1e-3 * largest(a), equal_nan=True)

    together = outputs(0, 1, 2)
    if differ(together, outputs(0, 1, 2)):
        raise ValueError(
            "the network's outputs for the same samples change from one pass to the next (it keeps a state?), so that "
            "no sample has a gradient of its own: let it begin afresh with every batch in eval mode"
        )
    if any(differ(one, outputs(k, k, k)[0]) for k, one in enumerate(together[:3])):
        raise ValueError(
            "a sample's outputs depend on the other samples of its batch (normalisation by the batch, or samples that "
            "are not the outputs' first dimension?), so that no sample has a gradient of its own: normalise by running "
            "statistics, put the samples first, or ask for the 'batched' kind"
        )


class _Saved:
    """Within: the bytes that autograd keeps for the backward pass, and of which types."""

    def __init__(self) -> None:
        self.tensors: dict[int, int] = {}
        self.types: set[torch.dtype] = set()
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        self.tensors[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        self.types.add(tensor.dtype)
        return tensor

    def lowest(self, of_outputs: torch.dtype) -> torch.dtype:
        """Returns the floating-point type of lowest precision."""
        return max((t for t in (*self.types, of_outputs) if t.is_floating_point), key=lambda t: torch.finfo(t).eps)

    def bytes(self, parameters: Iterable[Tensor]) -> int:
        own = {p.untyped_storage().data_ptr() for p in parameters}
        return sum(size for pointer, size in self.tensors.items() if pointer not in own)

    def __enter__(self) -> None:
        self.hooks.__enter__()

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)


def on_rows(layer: nn.Module, run: Run) -> bool:
    return isinstance(layer, nn.Linear) and run.inputs.dim() == 2


def part_of(batch: Minibatch, start: int, stop: int) -> Minibatch:
    if start == 0 and stop == rows(batch.inputs):
        return batch
    return samples_of(batch, slice(start, stop))._replace(first=batch.first + start)


def samples_of(batch: Minibatch, chosen: slice | Tensor) -> Minibatch:
    return batch._replace(
        inputs=part(batch.inputs, chosen), y=part(batch.y, chosen), columns=part(batch.columns, chosen)
    )
