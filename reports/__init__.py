"""How results are seen: records read and checked, tables, boards and pictures made of them. It trains nothing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engrams.reports.errors import UserError

if TYPE_CHECKING:
    from engrams.reports.predictions import Predictions, read_predictions
    from engrams.reports.store import Record, Records, read_records

__all__ = ["Predictions", "Record", "Records", "UserError", "read_predictions", "read_records"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # read when it is asked for: it takes a moment
        module = "predictions" if name in ("Predictions", "read_predictions") else "store"
        return getattr(import_module(f"engrams.reports.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
