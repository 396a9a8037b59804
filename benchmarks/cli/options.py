"""Options that several commands have."""

from __future__ import annotations

import ast
import json
import re
import sys
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engrams.reports.errors import UserError

if TYPE_CHECKING:
    from engrams.benchmarks.jobs.place import Place
    from engrams.reports.wandb.settings import WandBSettings

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib


class WandB(str, Enum):
    """Where W&B keeps the runs."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


ProtocolName = Annotated[
    str,
    typer.Argument(
        metavar="PROTOCOL", help="A name that 'list' shows, or a file: my.toml, or my.toml/class of several scenarios."
    ),
]
StrategyNames = Annotated[
    list[str],
    typer.Argument(
        metavar="STRATEGY...",
        help="Names that 'list' shows; your own, as module:name or file.py:name; or several joined: ewc+replay.",
    ),
]
Seeds = Annotated[str, typer.Option(help="How many (3: seeds 0, 1, 2), or which (5-9,12; one alone: 7-7).")]
Out = Annotated[Path, typer.Option(help="Folder of the records.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Runs at once; by default one a core, elsewhere as many as there is room for."),
]
On = Annotated[
    str,
    typer.Option(
        metavar="PLACE",
        help="Where runs go: local (processes here), slurm (a queue), ray (RAY_ADDRESS, the cluster of this machine, "
        "or one that is started here) or ray://HOST:PORT. Records are the same, and places may be mixed.",
    ),
]
Partition = Annotated[str | None, typer.Option(help="SLURM's.")]
Time = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="That a job of SLURM may take, as sbatch has it (1:30:00); by default four hours."
    ),
]
GPUs = Annotated[
    float | None,
    typer.Option("--gpus", min=0, help="That a run asks SLURM or Ray for; Ray lets runs share one (0.25)."),
]
Ask = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="What else a run asks for: an option of sbatch (mem=8G, account=me), or a resource of Ray's (cpus=2, "
        "memory=4e9). Can be given several times.",
    ),
]
StreamFromDisk = Annotated[
    bool,
    typer.Option(
        "--stream-from-disk", help="Memory is short: read images when they are needed. Slower, with the same results."
    ),
]
WandBOption = Annotated[
    WandB | None,
    typer.Option(help="Where W&B keeps the runs; by default WANDB_MODE, or online with WANDB_API_KEY, else offline."),
]
Project = Annotated[str | None, typer.Option(help="W&B's; by default WANDB_PROJECT, or engrams.")]
Entity = Annotated[str | None, typer.Option(help="User or team in W&B; by default WANDB_ENTITY, or the key's own.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="A tag of the runs in W&B. Can be given several times.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A hyperparameter (ewc_lambda=100; ewc.ewc_lambda=100 of ewc+replay) or a value of the protocol "
        "(training.epochs=2), in place of the protocol's own. Can be given several times.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Run nothing: say what would run and what is there already.")]

Wide = Annotated[bool, typer.Option("--wide", help="Show every column, however narrow the terminal is.")]


MOST_SEEDS = 10_000


class OptionError(UserError):
    """An option says something that cannot be; the message is one line."""


def wandb_of(mode: WandB | None, project: str | None, entity: str | None, tags: list[str] | None) -> WandBSettings:
    """Returns where W&B keeps the runs, as the options say; where it is less than they ask for, a line says why."""
    from engrams.benchmarks.cli.shown import say
    from engrams.reports.wandb.settings import resolve

    settings = resolve(mode.value if mode else None, project, entity, tags or ())
    if settings.word:
        say(settings.word, style="yellow")
    return settings


def place_of(
    on: str,
    workers: int | None,
    partition: str | None,
    time: str | None,
    gpus: float | None,
    ask: list[str] | None,
    out: Path,
) -> Place:
    """Returns where runs go, as the options say; what is missing there is said before anything that takes seconds.

    Raises:
        OptionError: there is no such place, or it does not have one of the options.
        PlaceError: a package or a program that it needs is not here.
    """
    from engrams.benchmarks.cli.shown import say

    kind = "ray" if on.startswith("ray://") else on
    if kind not in ("local", "slurm", "ray"):
        raise OptionError(f"--on {on}: there are local, slurm, ray and ray://HOST:PORT")
    places = {"--partition": ["slurm"], "--time": ["slurm"], "--gpus": ["slurm", "ray"], "--ask": ["slurm", "ray"]}
    given = zip(places.items(), (partition, time, gpus, ask), strict=True)
    for (option, of), _ in filter(lambda one: one[1] not in (None, []), given):
        if kind not in of:
            raise OptionError(f"{option} is for --on {' and --on '.join(of)}")
    asked = settings_of(ask, "--ask")
    if kind == "local":
        from engrams.benchmarks.jobs.processes import Here

        return Here(workers)
    if kind == "slurm":
        from engrams.benchmarks.jobs import slurm

        slurm.check()
        return slurm.Slurm(out, say, slurm.parameters(partition, time, gpus, workers, asked))
    from engrams.benchmarks.jobs import ray

    ray.check()
    return ray.Ray(out, say, on if on != "ray" else None, workers, ray.resources(gpus, asked))


def seeds_of(text: str) -> list[int]:
    """Returns the seeds that a text means.

    ``3`` is how many: 0, 1, 2. With a comma or a hyphen they are the seeds themselves: ``5-9,12``; a single one is
    ``7-7``, or ``7,``.

    Raises:
        OptionError: the text is none of these, or means more than MOST_SEEDS.
    """
    spans = [re.fullmatch(r"\s*(\d{1,20})(?:-(\d{1,20}))?\s*", part) for part in text.split(",") if part]
    ranges = [range(int(span[1]), int(span[2] or span[1]) + 1) for span in spans if span]
    if text.strip().isdecimal() and ranges:
        ranges = [range(ranges[0][0])]
    if not ranges or None in spans or not all(ranges):
        raise OptionError(f"--seeds {text}: give how many (3) or which (5-9,12; one alone: 7-7)")
    if sum(found.stop - found.start for found in ranges) > MOST_SEEDS:
        raise OptionError(f"--seeds {text}: that is more than {MOST_SEEDS}")
    return list(dict.fromkeys(chain.from_iterable(ranges)))


def settings_of(options: list[str] | None, name: str = "--set") -> dict[str, Any]:
    """Returns dotted key -> value of every option of a name; a value is read as TOML has it, else as text.

    One that is a dictionary in JSON, as W&B's agents write what they try, is taken as it is.

    Raises:
        OptionError: one is no KEY=VALUE, or a key is there twice.
    """
    settings: dict[str, Any] = {}
    for option in options or []:
        if option.startswith("{") and name == "--set":
            found = _read_json(option)
            if twice := next((key for key in found if key in settings), None):
                raise OptionError(f"{name} {option}: {twice} is set twice")
            settings |= found
            continue
        key, equals, text = option.partition("=")
        if not equals or not key or not text:
            example = "ewc_lambda=100" if name == "--set" else "mem=8G"
            raise OptionError(f"{name} {option}: write KEY=VALUE, {example} for example")
        if key in settings:
            raise OptionError(f"{name} {option}: {key} is set twice")
        try:
            settings[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = _as_python_has_it(text)
        except (ValueError, RecursionError) as error:  # a number, or tables, without end
            raise OptionError(f"{name} {key}: its value cannot be read: {error}") from error
    return settings


def _as_python_has_it(text: str) -> Any:
    """Returns ``True``, ``None``, ``.5`` and ``3,4`` as what they are, and everything else as a text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float) else text


def _read_json(option: str) -> dict[str, Any]:
    try:
        return dict(json.loads(option))
    except (ValueError, RecursionError) as error:
        raise OptionError(f"--set {option}: no dictionary in JSON ({error})") from error
