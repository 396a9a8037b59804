"""The command line: ``engrams ...``; in the repository also ``python -m benchmarks ...``."""

from __future__ import annotations

import os
import signal
import sys

import typer
from rich.console import Console

from engrams.reports.errors import UserError

app = typer.Typer(
    help="Engrams: a benchmark suite for catastrophic forgetting, built on Avalanche.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Runs the command line; what the user can mend, or the system refuses, ends in one line and exit status 2."""
    # Each file registers its commands; what takes seconds is imported inside them.
    from engrams.benchmarks.cli import features, listing, pages, runs, status, tables, verify, wandb  # noqa: F401

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an interrupt: runs keep checkpoints, and end
    try:
        app([_with_home(word) for word in sys.argv[1:]])
    except (UserError, OSError) as error:
        line = str(error if isinstance(error, UserError) else UserError(error))
        stderr = Console(stderr=True, emoji=False)
        stderr.print(f"error: {line}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


def _with_home(word: str) -> str:
    """``--out=~/runs`` with the home folder in it: most shells look for a ``~`` only where a word begins."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{os.path.expanduser(value)}"  # noqa: PTH111 (pathlib's raises where there is no such user)
