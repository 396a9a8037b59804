"""What is run: protocols, data, training and judging, and the command line that starts it all.

From Python::

    from engrams.benchmarks import load_protocol, run

    records = run("split-digits/class", ["naive", "ewc"], seeds=3, settings={"ewc_lambda": 10.0})
    records.frame()
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ == "benchmarks":  # python -m benchmarks in the repository: one package, under its one name
    import engrams.benchmarks

    sys.modules[__name__] = engrams.benchmarks

if TYPE_CHECKING:
    from engrams.benchmarks.api import load_protocol, run

__all__ = ["load_protocol", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # read when it is asked for: the command line has no use for it
        return getattr(import_module("engrams.benchmarks.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
