"""What a user asks for -> the runs that it means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engrams.benchmarks.names import check_strategy_name, strategy_called
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.protocols.schema import Protocol
from engrams.benchmarks.training.run import Run
from engrams.reports.errors import UserError
from engrams.strategies.contract import Hyperparameters, Strategy


class PlanError(UserError):
    """What is asked for cannot be; the message is one line."""


def plan(
    protocol: str | Protocol,
    strategies: Sequence[str | Strategy],
    seeds: Iterable[int],
    settings: Mapping[str, Any] | None = None,
    first: int | None = None,
) -> list[Run]:
    """Returns the runs of some strategies under a protocol, all seeds of one strategy before the next.

    Args:
        protocol: its name, the path of its file, or one that was read.
        strategies: names, as :func:`engrams.strategies.catalogue.get` takes them, or strategies got by one.
        seeds: of the runs.
        settings: dotted key -> value, in place of the protocol's: ``training.epochs`` is the protocol's,
            ``ewc_lambda`` is set for every strategy that has it, ``ewc.ewc_lambda`` for one of several that are joined.
        first: how many experiences are learned and judged; None for all.

    Raises:
        UnknownName: a protocol or strategy does not exist.
        ProtocolError: a protocol is wrong, or a setting is out of range.
        StrategyError: what a strategy's name leads to is none.
        PlanError: a setting is known neither to the protocol nor to a strategy; or ``first`` is below 1.
    """
    settings = dict(settings or {})
    of_protocol = registry.of_protocol(settings)
    of_strategies = {key: value for key, value in settings.items() if key not in of_protocol}
    if first is not None and first < 1:
        raise PlanError(f"at least one experience has to be learned; got {first}")
    if not isinstance(protocol, Protocol):
        for name in strategies:  # before anything that takes seconds
            if isinstance(name, str):
                check_strategy_name(name)
        protocol = registry.get(protocol, of_protocol)
    elif of_protocol:
        protocol = registry.get(protocol.reference, protocol.changed | of_protocol)
    entries = [strategy_called(one) if isinstance(one, str) else one for one in strategies]
    if any(not entry.reference for entry in entries):
        raise PlanError(
            "a strategy that was made here has no name by which another process finds it; put it into a file and "
            "name it: file.py:name"
        )
    for key in of_strategies:
        if not any(key in keys_of(entry) for entry in entries):
            known = sorted({key for entry in entries for key in keys_of(entry)})
            raise PlanError(f"no strategy here has {key!r} to set; there are {', '.join(known) or 'none'}")
    seeds = list(dict.fromkeys(seeds))
    if wrong := [seed for seed in seeds if not isinstance(seed, int) or seed < 0]:
        raise PlanError(f"a seed is a whole number of at least 0; got {wrong[0]!r}")
    runs = []
    for entry in {entry.name: entry for entry in entries}.values():
        own = {key: value for key, value in of_strategies.items() if key in keys_of(entry)}
        hyperparameters = protocol.hyperparameters_of(entry, own)
        # In one order, so that the same settings are the same row.
        shown = dict(sorted(own.items())) | dict(sorted(protocol.changed.items()))
        shown |= {} if first is None else {"experiences": first}
        variant = ",".join(f"{key}={shown_as(value)}" for key, value in shown.items())
        runs += [Run(protocol, entry, seed, hyperparameters, variant=variant, first=first) for seed in seeds]
    return runs


def run_of(protocol: Protocol, strategy: str, seed: int = 0, settings: Mapping[str, Any] | None = None) -> Run:
    """Returns one run, recorded where the protocol's own is.

    Args:
        protocol: of the run.
        strategy: a name.
        seed: of the run.
        settings: hyperparameters of the strategy, in place of the protocol's.

    Raises:
        UnknownName, StrategyError, ProtocolError: as :func:`plan`.
    """
    entry = strategy_called(strategy)
    return Run(protocol, entry, seed, protocol.hyperparameters_of(entry, settings))


def keys_of(strategy: Strategy) -> list[str]:
    """Returns the dotted keys of all that can be set of a strategy."""
    return _keys(strategy.hyperparameters)


def _keys(model: type[Hyperparameters]) -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Hyperparameters):
            keys += [f"{key}.{below}" for below in _keys(inner)]
        else:
            keys.append(key)
    return keys


def shown_as(value: Any) -> str:
    """Returns a value as a variant's name has it."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def seeds_of(text: str) -> list[int]:
    """Returns the seeds that a text means.

    ``3`` is how many: 0, 1, 2. With a comma or a hyphen they are the seeds themselves: ``5-9,12``; a single one is
    ``7-7``, or ``7,``.

    Raises:
        PlanError: the text is none of these.
    """
    if text.isdecimal() and int(text) > 0:
        return list(range(int(text)))
    seeds: list[int] = []
    for part in filter(None, text.split(",")):
        span = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not span or int(span[2] or span[1]) < int(span[1]):
            break
        seeds += range(int(span[1]), int(span[2] or span[1]) + 1)
    else:
        if seeds and not text.isdecimal():
            return list(dict.fromkeys(seeds))
    raise PlanError(f"--seeds {text}: give how many (3) or which (5-9,12; one alone: 7-7)")


def what_is_stale(runs: Sequence[Run], settings: Mapping[str, Any]) -> list[str]:
    """Returns a line for every strategy of some runs whose hyperparameters were chosen under other settings.

    Args:
        runs: of any number of strategies.
        settings: what was set by hand, as for :func:`plan`.
    """
    rows = {(run.protocol.name, run.strategy.name): run for run in runs}  # not once a seed
    return [line for run in rows.values() if (line := run.protocol.stale(run.strategy, list(settings)))]
