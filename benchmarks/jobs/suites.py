"""The suites that the Makefile runs, from suites.toml."""

from __future__ import annotations

from pathlib import Path

from engrams.benchmarks.errors import UnknownName
from engrams.benchmarks.protocols.registry import read_toml

FILE = Path(__file__).parent / "suites.toml"


def names() -> list[str]:
    """Returns the names of all suites."""
    return list(read_toml(FILE))


def runs_of(name: str, seeds: int | None = None) -> list[tuple[str, str, int]]:
    """Returns (protocol, strategy, seed) of every run of a suite; all strategies of one seed before the next seed.

    Args:
        name: of the suite.
        seeds: how many; None for the suite's own numbers.

    Raises:
        UnknownName: there is no such suite.
    """
    suites = read_toml(FILE)
    if name not in suites:
        raise UnknownName("suite", name, suites)
    suite = suites[name]
    return [
        (protocol, strategy, seed)
        for part in suite["runs"]
        for protocol in part["protocols"]
        for seed in range(seeds or part.get("seeds", suite["seeds"]))
        for strategy in part["strategies"]
    ]
