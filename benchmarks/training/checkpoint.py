"""A run between two of its experiences, or two steps, on disk: it goes on from there and ends as if never killed.

What is kept is tensors, numbers and texts, read back without running anybody's code. Everything that a run makes anew
in the same way (the stream, the network's architecture) is made anew.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.models import MultiTaskModule
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.utils._pytree import tree_map

from engrams.benchmarks.training import stopping
from engrams.reports import files, store
from engrams.reports.errors import UserError
from engrams.strategies.generator_training import GeneratorPlugin
from engrams.strategies.kept import (
    KeepsNothing,
    KeepsNothingWithin,
    State,
    Unkept,
    is_own,
    restore,
    restore_within,
    state_of,
    state_within,
)

FILE = store.CHECKPOINT
FORMAT = b"engrams checkpoint 2 "
"""What a file begins with; then the SHA-256 of the rest, and a line feed."""
SHARE = "ENGRAMS_CHECKPOINT_SHARE"
"""Variable of the environment: the share of a run's time that its checkpoints may take; ``inf``: one after every
experience, whatever it takes."""
INTERVAL = "ENGRAMS_CHECKPOINT_INTERVAL"
"""Variable of the environment: seconds between two checkpoints within an experience, at least."""
USUAL_SHARE, USUAL_INTERVAL = 0.01, 30.0
FIRST = 0.05
"""Seconds that the first one is expected to take."""


def _number(variable: str, usual: float) -> float:
    """Returns what a variable of the environment says, or what is usual."""
    text = os.environ.get(variable, "")
    try:
        return float(text) if text else usual
    except ValueError:
        raise UserError(f"{variable}={text}: it must be a number") from None


class Checkpoints:
    """Those of one run: one file, the latest."""

    def __init__(self, folder: Path, identity: str):
        """
        Args:
            folder: of the run.
            identity: all that decides what the run does; a checkpoint of another identity is none of this run.

        Raises:
            UserError: a variable of the environment is no number.
        """
        self.path = folder / FILE
        self.identity = identity
        self.share = _number(SHARE, USUAL_SHARE)
        self.kept = True
        """Whether the run can be kept at all."""
        self.kept_within = True
        """Whether it can in the middle of an experience."""
        self.interval = _number(INTERVAL, USUAL_INTERVAL)
        self._began = self._latest = time.perf_counter()
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
            _say(f"{self.path} is not used, and kept as {files.set_aside(self.path).name}: {problem}")
        except OSError as error:
            _say(f"{self.path} is not used: {problem} ({error})")
        return None

    def offer(self, state: Callable[[], State]) -> None:
        """Writes a state between two experiences, if it is time for one; ends the process if it is to end.

        A disk that is full costs a checkpoint, not the run.
        """
        if self.kept and (stopping.asked() or self._affordable()):
            try:
                self._take(state)
            except Unkept:  # then it begins again
                self.kept = False
        if stopping.asked():
            stopping.stop()

    def due_within(self) -> bool:
        """Tells whether a state in the middle of an experience is to be offered; asked in every step."""
        return stopping.asked() or (time.perf_counter() - self._latest >= self.interval and self._affordable())

    def offer_within(self, state: Callable[[], State]) -> None:
        """Writes a state in the middle of an experience, where one is due; ends the process if it is to end.

        Where that cannot be kept and the end of the experience can, the process goes on to there, if it is not far.
        """
        taken = False
        if self.kept and self.kept_within:
            try:
                self._take(state)
                taken = True
            except Unkept:
                self.kept_within = False
        if stopping.asked() and (taken or not self.kept):
            stopping.stop()

    def beginning(self, state: Callable[[], State]) -> State | None:
        """Returns a copy of a state before an experience; None where there is no time for it, or it cannot be kept."""
        began = time.perf_counter()
        if not (self.kept and self.kept_within) or self._spent > self.share * (began - self._began):
            return None
        try:
            return tree_map(_copied, state())
        except Unkept:
            self.kept = False
            return None
        finally:
            self._spent += time.perf_counter() - began

    def _affordable(self) -> bool:
        return self._spent + self._last <= self.share * (time.perf_counter() - self._began)

    def _take(self, state: Callable[[], State]) -> None:
        began = time.perf_counter()
        try:
            self._write(state())
        except OSError as error:
            _say(f"{self.path} cannot be written: {error}")
        self._latest = time.perf_counter()
        self._last = self._latest - began
        self._spent += self._last

    def _write(self, state: State) -> None:
        body = io.BytesIO()
        torch.save({"identity": self.identity, "state": state}, body)
        content = body.getvalue()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(self.path, FORMAT + sha256(content).hexdigest().encode() + b"\n" + content)

    def remove(self) -> None:
        """Removes the checkpoint of a run that is complete."""
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


def unkept_of(strategy: SupervisedTemplate) -> dict[str, str]:
    """Returns what no state has of a network or a criterion of one's own: its name -> a text that tells it apart.

    That is what their classes give them besides parameters, and buffers that are not persistent; of a criterion all. A
    run may go on from a checkpoint only where it is what it was when the strategy was made.
    """
    found = _attributes_of(strategy.model)
    criterion = getattr(strategy, "_criterion", None)
    if isinstance(criterion, nn.Module):
        state = {f"criterion.{name}": _told_apart(tensor) for name, tensor in criterion.state_dict().items()}
        found |= state | {f"criterion{name}": value for name, value in _attributes_of(criterion).items()}
    elif is_own(type(criterion)) and hasattr(criterion, "__dict__"):
        found |= {f"criterion.{key}": _told_apart(value) for key, value in vars(criterion).items()}
    return found


def _attributes_of(model: nn.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if is_own(type(module)):
            left_out = {key: module._buffers[key] for key in module._non_persistent_buffers_set}
            attributes = {key: value for key, value in vars(module).items() if key not in _MADE_ANEW}
            found |= {f"{name}.{key}": _told_apart(value) for key, value in (attributes | left_out).items()}
    return found


_MADE_ANEW = frozenset(vars(MultiTaskModule()))
"""What every module of torch's and of Avalanche's has."""


def _told_apart(value: Any) -> str:
    try:
        return sha256(pickle.dumps(tree_map(_content_of_tensor, value))).hexdigest()
    except Exception:  # a function made in a function, say
        return repr(value)


def _content_of_tensor(leaf: Any) -> Any:
    """A tensor's content, wherever it lies: its pickle has all that it is a part of."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return str(leaf.dtype), tuple(leaf.shape), leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def refuse_what_has_changed(as_made: Mapping[str, str], strategy: SupervisedTemplate) -> None:
    """Raises an Unkept where a network or a criterion of one's own has become another in what no state has."""
    now = unkept_of(strategy)
    if changed := sorted(key for key in as_made.keys() | now.keys() if as_made.get(key) != now.get(key)):
        raise Unkept(f"{changed[0].removeprefix('.')} has changed, which no state_dict has")


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


# --- in the middle of an experience -----------------------------------------------------------------------------------


class Within(KeepsNothing, KeepsNothingWithin, GeneratorPlugin):
    """Offers checkpoints between two steps, and takes a strategy to where one was made. The last of the plugins.

    What is kept is the state before the experience, with which it is begun again, and over it what has changed since.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        so_far: Callable[[], State],
        paused: Callable[[], AbstractContextManager[None]],
        kept: State | None,
    ):
        """
        Args:
            checkpoints: to be offered to.
            so_far: what is kept of a run besides its strategy.
            paused: within it, time is not the run's.
            kept: of an earlier ``within``, to go on from in the next experience.
        """
        super().__init__()
        self.checkpoints, self.so_far, self.paused, self._kept = checkpoints, so_far, paused, kept
        self._beginning: State | None = None

    def begin(self, strategy: SupervisedTemplate) -> None:
        """Begins an experience."""
        with self.paused():
            self._beginning = self.checkpoints.beginning(lambda: before_experience(strategy))

    def before_training_exp(self, strategy, **kwargs):
        if self._kept is None:
            return
        if hasattr(strategy, "load_state_dict_within"):
            strategy.load_state_dict_within(self._kept["own"])
        if self._kept["steps"]:
            strategy.train_epochs -= self._kept["epochs"]
        else:  # it is the generator that learns
            self._go_on(strategy)

    def before_training_epoch(self, strategy, **kwargs):
        if self._kept is not None:
            strategy.train_epochs += self._kept["epochs"]
            self._go_on(strategy)
        else:
            self._offer(strategy, steps=True)

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_epoch_iterations < len(strategy.dataloader):  # a step is left for what follows them
            self._offer(strategy, steps=True)

    def after_generator_epoch(self, strategy, **kwargs):
        self._offer(strategy, steps=False)

    def _offer(self, strategy: SupervisedTemplate, steps: bool) -> None:
        if not self.checkpoints.due_within() or (self._beginning is None and self.checkpoints.kept):
            return  # without a beginning there is nothing to keep, until the end
        with self.paused():
            self.checkpoints.offer_within(lambda: self._state(strategy, steps))

    def _state(self, strategy: SupervisedTemplate, steps: bool) -> State:
        assert self._beginning is not None
        changed = {
            "steps": steps,
            "epochs": strategy.clock.train_exp_epochs,
            "own": state_within(strategy),
            "plugins": [state_within(plugin) for plugin in strategy.plugins],
            "random": random_state(),
        }
        if steps:
            changed |= {"model": strategy.model.state_dict(), "optimizer": _state_of_optimizer(strategy)}
        return {**self.so_far(), **self._beginning, "within": changed}

    def _go_on(self, strategy: SupervisedTemplate) -> None:
        assert self._kept is not None
        kept, self._kept = self._kept, None
        for plugin, state in zip(strategy.plugins, kept["plugins"], strict=True):
            restore_within(plugin, state)
        if kept["steps"]:
            strategy.model.load_state_dict(kept["model"])
            _restore_optimizer(strategy, kept["optimizer"])
        restore_random(kept["random"])


def before_experience(strategy: SupervisedTemplate) -> State:
    """Returns what an experience is begun with."""
    return {"strategy": state_of_strategy(strategy), "random": random_state()}


def _copied(leaf: Any) -> Any:
    return leaf.detach().cpu().clone() if isinstance(leaf, torch.Tensor) else leaf


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
