"""Where W&B keeps the runs: what an option says, else W&B's own variables and settings file, else ours."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import wandb

WandBMode = Literal["online", "offline", "disabled"]
PROJECT = "engrams"
_MODES: dict[str, WandBMode] = {"run": "online", "shared": "online", "dryrun": "offline"}
"""W&B's other names of modes."""


@dataclass(frozen=True)
class WandBSettings:
    """Where the runs of one command go in W&B."""

    mode: WandBMode = "disabled"
    project: str = PROJECT
    entity: str | None = None
    """The user or team; None for the key's own."""
    tags: tuple[str, ...] = ()
    """Besides those that every run has."""


DISABLED = WandBSettings()


def resolve(
    mode: WandBMode | None = None, project: str | None = None, entity: str | None = None, tags: Sequence[str] = ()
) -> WandBSettings:
    """Returns where the runs go; what is None is said by W&B's variables or its settings file, as for a plain script.

    Without either, runs are kept offline, or sent if WANDB_API_KEY is set. There is never a login prompt: a warning says
    where less can be had than is wanted, for want of the package or of a key.

    Args:
        mode, project, entity: before WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY.
        tags: added to those of WANDB_TAGS.
    """
    if mode == "disabled":
        return DISABLED
    try:
        said = own_settings()
    except ImportError:
        warnings.warn("W&B is off: wandb is not installed (pip install 'engrams[wandb]')", stacklevel=2)
        return DISABLED
    if mode is None:
        if "mode" in said.model_fields_set or os.environ.get("WANDB_MODE"):
            mode = _MODES.get(said.mode, said.mode)  # type: ignore[arg-type]
        else:
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    if mode == "disabled":
        return DISABLED
    if mode == "online" and key_of(said) is None:
        warnings.warn("W&B is offline: no API key; set WANDB_API_KEY or run 'wandb login' first", stacklevel=2)
        mode = "offline"
    return WandBSettings(
        mode=mode,
        project=project or said.project or PROJECT,
        entity=entity or said.entity,
        tags=(*(said.run_tags or ()), *tags),
    )


def own_settings() -> wandb.Settings:
    """Returns what W&B's settings file and its variables say; they are read anew each time.

    Raises:
        ImportError: wandb is not installed.
    """
    import wandb

    said = wandb.Settings()
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path("~", ".config", "wandb")
    said.settings_system = str(Path(folder).expanduser() / "settings")
    said.update_from_system_settings()
    said.update_from_env_vars(dict(os.environ))
    return said


def key_of(said: wandb.Settings) -> str | None:
    """Returns the key of the service: WANDB_API_KEY, or what ``wandb login`` has written; None if there is none."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import read_netrc_auth

    if said.api_key:
        return said.api_key
    try:
        return read_netrc_auth(host=said.base_url)
    except (AuthenticationError, OSError):
        return None
