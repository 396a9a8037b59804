"""A run -> W&B.

Avalanche 0.6's own WandBLogger raises AttributeError with a current wandb (`wandb.util.generate_id`, `wandb.viz`;
ContinualAI/avalanche issue 1674).
"""

from __future__ import annotations

import hashlib
import json
import netrc
import os
import time
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from engrams.reports.figures import accuracy_matrix_figure
from engrams.reports.matrix import seen_so_far
from engrams.reports.store import Record

WandBMode = Literal["online", "offline", "disabled"]
PROJECT = "engrams"


def default_mode() -> WandBMode:
    """Online if WANDB_API_KEY says so, else offline."""
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def usable_mode(wanted: WandBMode) -> WandBMode:
    """What of a wanted mode can be had without a question being asked; a warning says so where it is less.

    Online needs a key (WANDB_API_KEY, or ``wandb login`` done before); anything but disabled needs wandb installed.
    """
    if wanted == "disabled":
        return wanted
    try:
        import wandb  # noqa: F401
    except ImportError:
        warnings.warn("W&B is off: wandb is not installed (pip install 'engrams[wandb]')", stacklevel=2)
        return "disabled"
    if wanted == "online" and not _has_key():
        warnings.warn("W&B is offline: no API key; set WANDB_API_KEY or run 'wandb login' first", stacklevel=2)
        return "offline"
    return wanted


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def run_id(protocol: str, strategy: str, seed: int, deciding: dict[str, Any]) -> str:
    """The same for the same run, so that repeating it resumes its page."""
    identity = json.dumps([protocol, strategy, seed, deciding], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _never_fails(method: Callable) -> Callable:
    """W&B failing must not fail a run: the first failure is warned of and ends the logging."""

    @wraps(method)
    def guarded(self, *args, **kwargs):
        if not self.active:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # whatever wandb, the disk or the network come up with
            self.active = False
            warnings.warn(f"W&B logging stopped, the run goes on: {type(error).__name__}: {error}", stacklevel=2)
            return None

    return guarded


class WandBLogger:
    """Logs one row an experience and, at the end, the accuracy matrix, the metrics and the record.

    History (step metric ``experience``): ``accuracy/exp_00`` ..., in [0, 1]; ``ACC`` and ``forgetting`` over the
    experiences trained on so far; ``seconds`` since the run began. Of a generator, a row more with ``generated``, a
    picture of what it makes, and one with ``frechet_distance`` where the generator is judged itself. At the end:
    ``accuracy_matrix`` and, of a solver's generator, ``class_shares`` as tables, ``accuracy_matrix_image`` as a
    picture, ``generated_animation``, the metrics in the summary, ``record.json`` as an artifact.
    """

    def __init__(
        self,
        folder: Path,
        protocol: str,
        strategy: str,
        seed: int,
        config: dict[str, Any],
        mode: WandBMode,
        whole_stream_at_once: bool = False,
    ):
        """
        Args:
            folder: W&B's files go below it.
            protocol: the run's group.
            strategy: the run's job type.
            seed: part of the run's name.
            config: everything that decides the result, and ``environment``.
            mode: ``online``, ``offline`` or ``disabled``; there is never a login prompt (see :func:`usable_mode`).
            whole_stream_at_once: there is one experience, of everything.
        """
        self.active = mode != "disabled"
        self.whole_stream_at_once = whole_stream_at_once
        self._start(folder, protocol, strategy, seed, config, mode)

    @_never_fails
    def _start(self, folder: Path, protocol: str, strategy: str, seed: int, config: dict[str, Any], mode: WandBMode):
        import wandb

        deciding = {key: value for key, value in config.items() if key != "environment"}
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            group=protocol,
            job_type=strategy,
            name=f"{protocol} {strategy} seed {seed}",
            id=run_id(protocol, strategy, seed, deciding),
            resume="allow" if mode == "online" else None,  # offline, the shared id alone makes a sync resume the page
            config={"protocol": protocol, "strategy_name": strategy, "seed": seed, **config},
            dir=str(folder),
            mode=mode,
            reinit="finish_previous",
            # The versions that matter are in the config; to list every package takes a fifth of a second a run.
            settings=wandb.Settings(
                console="off", silent=True, x_disable_stats=True, x_disable_meta=True, x_save_requirements=False
            ),
        )
        self._run.define_metric("experience")
        for metric in ("accuracy/*", "ACC", "forgetting", "seconds", "frechet_distance"):
            self._run.define_metric(metric, step_metric="experience")
        self._started = time.perf_counter()

    @_never_fails
    def after_experience(self, strategy, matrix: list[list[float]], seen: dict[str, Any]) -> None:
        """Logs one row of the history after each experience trained on.

        Args:
            strategy: not looked at.
            matrix: the accuracy matrix so far.
            seen: what others saw in this experience: ``generated``, a picture's path, and ``frechet_distance``.
        """
        import wandb

        row = matrix[-1]
        pictures = {"generated": wandb.Image(str(seen["generated"]))} if "generated" in seen else {}
        distances = {"frechet_distance": seen["frechet_distance"]} if "frechet_distance" in seen else {}
        self._run.log(
            {
                "experience": len(matrix) - 1,
                **{f"accuracy/exp_{index:02d}": accuracy for index, accuracy in enumerate(row)},
                # Joint training has one row, after all experiences; it has seen every one of them.
                **({"ACC": sum(row) / len(row)} if self.whole_stream_at_once else seen_so_far(matrix)),
                "seconds": time.perf_counter() - self._started,
                **pictures,
                **distances,
            }
        )

    @_never_fails
    def animation(self, path: Path) -> None:
        """Log what a generator made after every experience, as a GIF."""
        import wandb

        self._run.log({"generated_animation": wandb.Video(str(path), format="gif")})

    @_never_fails
    def finish(self, record: Record, path: Path) -> None:
        """Log what only the whole run has, and end it.

        Args:
            record: of the run, complete or failed.
            path: where the record was written.
        """
        import wandb

        if record.complete:
            matrix = record.accuracy_matrix
            columns: list[str | int] = ["trained_experience", *(f"exp_{index:02d}" for index in range(len(matrix[0])))]
            rows: list[Iterable[Any]] = [[index, *row] for index, row in enumerate(matrix)]
            figure = accuracy_matrix_figure(matrix, f"{record.protocol}, {record.strategy}, seed {record.seed}")
            self._run.log(
                {
                    "accuracy_matrix": wandb.Table(columns=columns, data=rows),
                    "accuracy_matrix_image": wandb.Image(figure),
                }
            )
            if record.generated and record.generated.class_shares:
                shares = record.generated.class_shares
                columns = ["trained_experience", *(f"class_{label}" for label in range(len(shares[0])))]
                rows = [[index, *row] for index, row in enumerate(shares)]
                self._run.log({"class_shares": wandb.Table(columns=columns, data=rows)})
            if record.generated and record.generated.reverse_accuracy is not None:
                self._run.summary["reverse_accuracy"] = record.generated.reverse_accuracy
            self._run.summary.update({name: value for name, value in record.metrics.items() if value is not None})
        self._run.summary.update({"status": record.status, "seconds": record.seconds, "reason": record.reason})
        artifact = wandb.Artifact(f"record-{self._run.id}", type="record")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if record.complete else 1)
