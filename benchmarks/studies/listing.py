"""The names and titles of the studies in ``studies.toml``, without what a study needs to run."""

from __future__ import annotations

from pathlib import Path

from engrams.benchmarks.errors import UnknownName
from engrams.benchmarks.protocols.registry import read_toml

FILE = Path(__file__).parent / "studies.toml"


def titles() -> dict[str, str]:
    """Returns every study's name and title."""
    return {name: study.get("title", "") for name, study in read_toml(FILE).items()}


def check(name: str) -> None:
    """Says what is wrong with the name of a study.

    Raises:
        UnknownName: there is no such study; a near name is suggested.
    """
    if name not in titles():
        raise UnknownName("study", name, titles())
