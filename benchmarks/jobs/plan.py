"""What a user asks for -> the runs that it means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import isclass
from numbers import Integral
from typing import Any, get_origin

from engrams.benchmarks.data import names as data_names
from engrams.benchmarks.names import check_strategy_name, strategy_called
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.protocols.dotted import flattened
from engrams.benchmarks.protocols.protocol import MissingHyperparameters, Protocol
from engrams.benchmarks.runs import Run
from engrams.reports.errors import UserError
from engrams.strategies import references
from engrams.strategies.contract import Hyperparameters, Strategy

SEEDS = 2**32
"""How many there are: NumPy, which Avalanche seeds too, takes no others."""


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
        PlanError: a setting is known neither to the protocol nor to a strategy, or is a table; no strategy or no seed
            is asked for; or ``first`` is below 1.
    """
    settings = dict(settings or {})
    for key, value in settings.items():
        if isinstance(value, Mapping):
            raise PlanError(f"{key} is a table; set what is in it with a dot, as in {key}.{next(iter(value), 'key')}")
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
    if not entries:
        raise PlanError("no strategy is asked for")
    if any(not entry.reference for entry in entries):
        raise PlanError(
            "a strategy that was made here has no name by which another process finds it; put it into a file and "
            "name it: file.py:name"
        )
    for key in of_strategies:
        if not any(key in keys_of(entry) for entry in entries):
            known = sorted({key for entry in entries for key in keys_of(entry)})
            there = f"there are {', '.join(known)}" if known else "there is nothing to set"
            its_own = registry.of_protocol(flattened(protocol.model_dump(mode="json", exclude={"strategies"})))
            near = [one for one in its_own if one.endswith(f".{key}")]
            hint = f"the protocol's is {' or '.join(near)}" if near else there
            raise PlanError(f"no strategy here has {key!r} to set; {hint}")
    seeds = list(dict.fromkeys(int(seed) if isinstance(seed, Integral) else seed for seed in seeds))  # NumPy's, too
    if not seeds:
        raise PlanError("no seed is asked for")
    if wrong := [seed for seed in seeds if not isinstance(seed, int) or not 0 <= seed < SEEDS]:
        raise PlanError(f"a seed is a whole number from 0 to {SEEDS - 1}; got {wrong[0]!r}")
    runs = []
    missing: list[tuple[Strategy, str]] = []
    for entry in by_name(entries).values():
        own = {key: value for key, value in of_strategies.items() if key in keys_of(entry)}
        try:
            hyperparameters = protocol.hyperparameters_of(entry, own)
        except MissingHyperparameters as error:  # what all strategies lack is said at once
            missing += error.missing
            continue
        # In one order, so that the same settings are the same row.
        shown = dict(sorted(own.items())) | dict(sorted(protocol.changed.items()))
        shown |= {} if first is None else {"experiences": first}
        variant = ",".join(f"{key}={shown_as(key, value)}" for key, value in shown.items())
        runs += [Run(protocol, entry, seed, hyperparameters, variant=variant, first=first) for seed in seeds]
    if missing:
        raise MissingHyperparameters(protocol, missing)
    return runs


def by_name(strategies: Iterable[Strategy]) -> dict[str, Strategy]:
    """Returns strategies by their names, each once.

    Raises:
        PlanError: two that are not the same have one name, and would have one record.
    """
    found: dict[str, Strategy] = {}
    for strategy in strategies:
        other = found.setdefault(strategy.name, strategy)
        if other.reference != strategy.reference:
            raise PlanError(
                f"{other.reference} and {strategy.reference} would both be recorded as {strategy.name}: give one "
                f"another name"
            )
    return found


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
        if isclass(inner) and not get_origin(inner) and issubclass(inner, Hyperparameters):  # tuple[int] is both
            keys += [f"{key}.{below}" for below in _keys(inner)]
        else:
            keys.append(key)
    return keys


def shown_as(key: str, value: Any) -> str:
    """Returns a setting's value as a variant's name has it; of a path to one's own data or network, its last part."""
    if isinstance(value, str) and ":" in value and key in (*registry.NAMED, "network.kind"):
        return (references if key == "network.kind" else data_names).short(value)
    return repr(float(value)).removesuffix(".0") if isinstance(value, float) else str(value)


def what_is_stale(runs: Sequence[Run], settings: Mapping[str, Any]) -> list[str]:
    """Returns a line for every strategy of some runs whose hyperparameters were chosen under other settings.

    Args:
        runs: of any number of strategies.
        settings: what was set by hand, as for :func:`plan`.
    """
    lines = []
    for run in {(run.protocol.name, run.strategy.name): run for run in runs}.values():  # not once a seed
        protocol, joined = run.protocol, run.strategy
        lines.append(protocol.stale(joined, list(settings)))
        own = [*settings, *(protocol.chosen[joined.name].hyperparameters if joined.name in protocol.chosen else ())]
        for part in joined.parts:
            below = [key.removeprefix(f"{part.name}.") for key in own if key.startswith(f"{part.name}.")]
            lines.append(protocol.stale(part, below))
    return list(dict.fromkeys(line for line in lines if line))  # a part may stand alone, too
