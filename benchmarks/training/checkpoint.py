"""A run between two of its experiences, on disk: killed, it goes on from there and ends as if it had not been.

What is kept is tensors, numbers and texts, read back without running anybody's code. Everything that a run makes anew
in the same way (the stream, the network's architecture) is made anew.
"""

from __future__ import annotations

import io
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.training.templates import SupervisedTemplate

from engrams.reports import store
from engrams.strategies.kept import State, Unkept, restore, state_of

FILE = "checkpoint"
FORMAT = b"engrams checkpoint 2 "
"""What a file begins with; then the SHA-256 of the rest, and a line feed."""
SHARE = "ENGRAMS_CHECKPOINT_SHARE"
"""Variable of the environment: the share of a run's time that its checkpoints may take; ``inf``: one after every
experience, whatever it takes."""
USUAL_SHARE = 0.01
FIRST = 0.05
"""Seconds that the first one is expected to take."""


class Checkpoints:
    """Those of one run: one file, the latest."""

    def __init__(self, folder: Path, identity: str):
        """
        Args:
            folder: of the run.
            identity: all that decides what the run does; a checkpoint of another identity is none of this run.
        """
        self.path = folder / FILE
        self.identity = identity
        self.share = float(os.environ.get(SHARE, USUAL_SHARE))
        self.kept = True
        """Whether the run can be kept at all."""
        self._began = time.perf_counter()
        self._spent, self._last = 0.0, FIRST

    def read(self) -> State | None:
        """Returns the state that was kept, None if there is none; one that is of no use here is set aside."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _say(f"{self.path} cannot be read ({error}): the run begins again")
            return None
        try:
            kept = _content(content)
            if kept["identity"] == self.identity:
                return kept["state"]
            problem = "it is of other settings or another version"
        except Exception:  # half of one, or whatever a pickle that nobody here wrote makes torch say
            problem = "it is cut short, or no checkpoint"
        try:
            _say(f"{self.path} is not used, and kept as {store.set_aside(self.path).name}: {problem}")
        except OSError as error:
            _say(f"{self.path} is not used: {problem} ({error})")
        return None

    def offer(self, state: Callable[[], State]) -> None:
        """Writes a state, if it is time for one; a disk that is full costs a checkpoint, not the run."""
        began = time.perf_counter()
        if not self.kept or self._spent + self._last > self.share * (began - self._began):
            return
        try:
            self._write(state())
        except Unkept:  # then it begins again
            self.kept = False
        except OSError as error:
            _say(f"{self.path} cannot be written: {error}")
        self._last = time.perf_counter() - began
        self._spent += self._last

    def _write(self, state: State) -> None:
        body = io.BytesIO()
        torch.save({"identity": self.identity, "state": state}, body)
        content = body.getvalue()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        store.replace_file(self.path, FORMAT + sha256(content).hexdigest().encode() + b"\n" + content)

    def remove(self) -> None:
        """The run is complete."""
        self.path.unlink(missing_ok=True)


def _content(content: bytes) -> State:
    head, _, body = content.partition(b"\n")
    if head != FORMAT + sha256(body).hexdigest().encode():
        raise ValueError("its checksum is not that of its content")
    return torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


# --- a strategy -------------------------------------------------------------------------------------------------------


def state_of_strategy(strategy: SupervisedTemplate) -> State:
    """Returns what a strategy has learned, between two experiences.

    Raises:
        Unkept: it, or one of its plugins, does not say what it keeps.
    """
    return {
        "own": state_of(strategy),
        "plugins": [{"kind": type(plugin).__name__, "state": state_of(plugin)} for plugin in strategy.plugins],
        "model": strategy.model.state_dict(),
        "optimizer": _state_of_optimizer(strategy),
    }


def restore_strategy(strategy: SupervisedTemplate, state: State, learned: Sequence, judged: Sequence) -> None:
    """Gives a strategy that was made anew what another one had learned.

    Args:
        strategy: as it was made.
        state: of :func:`state_of_strategy`.
        learned: the experiences that the other was trained on.
        judged: those that it was evaluated on.
    """
    # A network grows with what it meets; first here, where it was evaluated before it learned.
    strategy.model.to(strategy.device)
    for training, experiences in ((False, judged), (True, learned)):
        strategy.model.train(training)
        for strategy.experience in experiences:
            strategy.model = strategy.model_adaptation()
    strategy.experience = None
    strategy.model.load_state_dict(state["model"])
    if strategy.optimizer is not None:
        _restore_optimizer(strategy, state["optimizer"])
    restore(strategy, state["own"])
    for plugin, kept in zip(strategy.plugins, state["plugins"], strict=True):
        assert type(plugin).__name__ == kept["kind"]
        restore(plugin, kept["state"])


def _state_of_optimizer(strategy: SupervisedTemplate) -> State | None:
    """By the names of parameters: their order is that in which a model happened to grow."""
    optimizer = strategy.optimizer
    if optimizer is None:
        return None
    names = {parameter: name for name, parameter in strategy.model.named_parameters()}
    if any(kept and parameter not in names for parameter, kept in optimizer.state.items()):
        raise Unkept("the optimiser has stepped on parameters that are not the model's")
    # Those of a layer that was exchanged for a larger one before it learned are there still, and do nothing.
    groups = [group | {"params": [names[p] for p in group["params"] if p in names]} for group in optimizer.param_groups]
    return {"groups": groups, "state": {names[p]: kept for p, kept in optimizer.state.items() if p in names}}


def _restore_optimizer(strategy: SupervisedTemplate, state: State) -> None:
    parameters = dict(strategy.model.named_parameters())
    for group, kept in zip(strategy.optimizer.param_groups, state["groups"], strict=True):
        group.clear()
        group.update(kept | {"params": [parameters[name] for name in kept["params"]]})
    strategy.optimizer.state = defaultdict(
        dict,
        {
            parameters[name]: {key: _beside(value, parameters[name]) for key, value in kept.items()}
            for name, kept in state["state"].items()
        },
    )
    strategy.optimized_param_id = parameters


def _beside(value: Any, parameter: torch.Tensor) -> Any:
    return value.to(parameter.device) if isinstance(value, torch.Tensor) else value


# --- random numbers ---------------------------------------------------------------------------------------------------


def random_state() -> State:
    """Returns the state of all global sources of random numbers."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (what Avalanche draws from)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(numbers), gauss],
    }


def restore_random(state: State) -> None:
    """Sets all global sources of random numbers."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
