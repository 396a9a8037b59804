"""Where W&B keeps the runs: what an option says, else W&B's own variables and settings file, else ours.

Also what a process that imports wandb is given, and what it leaves behind. What W&B's own settings say, wandb is asked
in a process of its own: to import it leaves folders in the temporary directory of a process that is killed, and takes a
second.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import psutil

WandBMode = Literal["online", "offline", "disabled"]
PROJECT = "engrams"
_MODES: dict[str, WandBMode] = {"run": "online", "shared": "online", "dryrun": "offline"}
"""W&B's other names of modes."""
NO_KEY = "there is no API key; set WANDB_API_KEY or run 'wandb login' first"
SCRATCH = "engrams-wandb-"
PATIENCE = 60.0
"""Seconds that wandb has to say what its settings are."""


@dataclass(frozen=True)
class Address:
    """Of W&B's service."""

    url: str
    web: str
    """Of its pages."""
    key: str = field(repr=False)


@dataclass(frozen=True)
class WandBSettings:
    """Where the runs of one command go in W&B."""

    mode: WandBMode = "disabled"
    project: str = PROJECT
    entity: str | None = None
    """The user or team; None for the key's own."""
    tags: tuple[str, ...] = ()
    """Besides those that every run has."""
    address: Address | None = None
    """Of the service, if there is a key to it."""
    word: str = ""
    """A line, where less can be had than is wanted."""


DISABLED = WandBSettings()


def resolve(
    mode: WandBMode | None = None, project: str | None = None, entity: str | None = None, tags: Sequence[str] = ()
) -> WandBSettings:
    """Returns where the runs go; what is None is said by W&B's variables or its settings file, as for a plain script.

    Without either, runs are kept offline, or sent if WANDB_API_KEY is set or a sweep's agent has begun them. There is
    never a login prompt: ``word`` says where less can be had than is wanted, for want of the package or of a key.

    Args:
        mode, project, entity: before WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY.
        tags: added to those of WANDB_TAGS.
    """
    if mode == "disabled" or (mode is None and os.environ.get("WANDB_MODE") == "disabled"):
        return DISABLED
    if find_spec("wandb") is None:
        return replace(DISABLED, word="W&B is off: wandb is not installed (pip install wandb)")
    try:
        said = _said_by_wandb()
    except _NotTaken as error:  # offline, too, it would begin no run
        return replace(DISABLED, word=f"W&B is off: its settings cannot be read: {error}")
    if mode is None and said["mode"]:
        mode = _MODES.get(said["mode"], said["mode"])
    if mode is None:
        asked = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_SWEEP_ID")
        mode = "online" if asked else "offline"
    if mode == "disabled":
        return DISABLED
    word = said["word"]
    if mode == "online" and not said["key"]:
        word = word or f"W&B is offline: {NO_KEY}"
        mode = "offline"
    return WandBSettings(
        mode=mode,
        project=project or said["project"] or PROJECT,
        entity=entity or said["entity"],
        tags=(*said["tags"], *tags),
        address=Address(said["url"], said["web"], said["key"]) if said["key"] else None,
        word=word,
    )


class _NotTaken(Exception):
    """W&B does not take a value of its variables or its settings file."""


def _said_by_wandb() -> dict[str, Any]:
    """What its variables, its settings file and its login say.

    Raises:
        _NotTaken: the message says of which and why.
    """
    with scratch() as folder:
        try:
            asked = subprocess.run(
                [sys.executable, "-m", __name__],
                env=environment(folder),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            word = f"W&B is offline: its settings cannot be read: wandb does not answer within {PATIENCE:.0f} s"
            return {"mode": "offline", "project": None, "entity": None, "tags": [], "key": None, "word": word}
    if asked.returncode:
        raise _NotTaken("".join(asked.stderr.strip().splitlines()[-1:]))
    return {**json.loads(asked.stdout.splitlines()[-1]), "word": ""}


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what wandb writes besides its runs, removed in the end; so is what a killed process has left."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        pid = left.name.removeprefix(SCRATCH).partition("-")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(folder: Path) -> dict[str, str]:
    """Returns the variables of a process that imports wandb, which writes into the folder what it would leave behind.

    Args:
        folder: of :func:`scratch`.
    """
    # WANDB_SERVICE would join the process of somebody's own run; WANDB_RESUME is for one run, not for each of many.
    # One that is empty is not set, which wandb takes for a value of some of them.
    theirs = {
        key: value
        for key, value in os.environ.items()
        if key not in ("WANDB_SERVICE", "WANDB_RESUME") and (value or not key.startswith("WANDB_"))
    }
    ours = dict.fromkeys(("TMPDIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"), str(folder))
    return theirs | ours | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "WANDB_SILENT": "true"}


def kill_children(pid: int) -> None:
    """Kills what a process that imported wandb has begun: it would go on trying to send for as long as it takes."""
    begun = psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else []
    for process in begun:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(begun, timeout=1)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _main() -> None:
    import wandb
    from pydantic import ValidationError
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import read_netrc_auth

    said = wandb.Settings()
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path("~", ".config", "wandb")
    said.settings_system = str(Path(folder).expanduser() / "settings")
    try:
        said.update_from_system_settings()
        said.update_from_env_vars(dict(os.environ))
    except ValidationError as error:
        sys.exit("; ".join(f"{wrong['loc'][-1]}: {wrong['msg']}" for wrong in error.errors()))
    key = said.api_key
    if not key:
        try:
            key = read_netrc_auth(host=said.base_url)
        except (AuthenticationError, OSError):
            key = None
    answer = {
        "mode": said.mode if "mode" in said.model_fields_set else None,
        "project": said.project,
        "entity": said.entity,
        "tags": list(said.run_tags or ()),
        "url": said.base_url.rstrip("/"),
        "web": said.app_url.rstrip("/"),
        "key": key,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
