"""What the catalogue has of each method: what can be set of it and searched, and how it is made.

These files are read wherever a strategy is named, and so import neither torch nor Avalanche, which take seconds: a
method's own file is read where one is made.
"""

from importlib import import_module
from typing import Any


class Later:
    """A module that is imported when something in it is asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
