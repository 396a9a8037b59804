"""A strategy's name -> the strategy, or one line that says what is wrong with the name."""

from __future__ import annotations

from engrams.benchmarks.errors import UnknownName
from engrams.reports.errors import UserError
from engrams.strategies import catalogue
from engrams.strategies.contract import Strategy


class StrategyError(UserError):
    """What a name leads to is no strategy, or cannot be joined with others; the message is one line."""


def check_strategy_name(name: str) -> None:
    """Says what is wrong with a name, without reading any strategy's file.

    Raises:
        UnknownName: a part of it is in neither the catalogue nor an installed package, and names no file or module.
    """
    for part in catalogue.parts_of(name):
        known = [*catalogue.CATALOGUE, *catalogue.registered()]
        if not part:
            raise StrategyError(f"{name!r}: a strategy's name is missing before or after '+'")
        if part.endswith(".py"):
            raise StrategyError(f"{part} is a file: say what in it is the strategy, as in {part}:my_strategy")
        if part not in known and ":" not in part:
            raise UnknownName("strategy", part, known)


def strategy_called(name: str) -> Strategy:
    """Returns the strategy of a name; see :func:`engrams.strategies.catalogue.get`.

    Raises:
        UnknownName: there is none of this name; a near one is suggested.
        StrategyError: what it leads to is missing, broken or no strategy, or cannot be joined.
    """
    check_strategy_name(name)
    try:
        return catalogue.get(name)
    except ValueError as error:
        raise StrategyError(str(error)) from error
