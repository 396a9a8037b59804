"""A solver looked at while it learns: every so many steps, and before it learns from a minibatch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager

import torch
from avalanche.benchmarks import CLExperience
from avalanche.models import avalanche_forward
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.utils.data import DataLoader

from engrams.benchmarks.judging.masked import classes_asked, only
from engrams.benchmarks.protocols.schema import Judging
from engrams.reports.anytime import Anytime, Prequential, measures
from engrams.strategies.kept import State
from engrams.strategies.undisturbed import evaluation_mode

SEED = 0
"""Of which test samples are looked at: the same in every run."""
AT_ONCE = 1000


class AnytimePlugin(SupervisedPlugin):
    """Measures the accuracy on all experiences met, every so many steps and at the end of each experience.

    It takes no random number and leaves the network as it was, so that what is learned is the same without it.
    """

    def __init__(
        self,
        judged: Sequence[CLExperience],
        judging: Judging,
        paused: Callable[[], AbstractContextManager[None]],
        masked: bool = False,
    ):
        """
        Args:
            judged: the experiences to be judged on, as many as are learned.
            judging: how often, and on how many samples.
            paused: within it, time is not the run's.
            masked: outputs of other experiences' classes are left out.
        """
        super().__init__()
        assert judging.every is not None
        self.masked = masked
        self.every, self.samples = judging.every, judging.samples
        self.judged = judged
        self.paused = paused
        self.columns: list[list[Tensor]] = []
        self.steps: list[int] = []
        self.experience: list[int] = []
        self.accuracy: list[list[float]] = []
        self._done = 0

    def state_dict(self) -> State:
        """Returns what was seen so far."""
        return {
            "done": self._done,
            "steps": list(self.steps),
            "experience": list(self.experience),
            "accuracy": [list(row) for row in self.accuracy],
        }

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self._done, self.steps, self.experience, self.accuracy = (
            state[name] for name in ("done", "steps", "experience", "accuracy")
        )

    state_dict_within, load_state_dict_within = state_dict, load_state_dict

    def after_training_iteration(self, strategy, **kwargs):
        self._done += 1
        if self._done % self.every == 0:
            self._look(strategy)

    def after_training_exp(self, strategy, **kwargs):
        here = (self._done, strategy.experience.current_experience)
        if not self.steps or (self.steps[-1], self.experience[-1]) != here:
            self._look(strategy)

    def _look(self, strategy) -> None:
        with self.paused():
            current = strategy.experience.current_experience
            while len(self.columns) <= current:
                self.columns.append(_sample(self.judged[len(self.columns)], self.samples, strategy.device))
            self.steps.append(self._done)
            self.experience.append(current)
            self.accuracy.append(
                [
                    float(right(strategy.model, x, y, tasks, classes_asked(experience, self.masked)).double().mean())
                    for (x, y, tasks), experience in zip(self.columns[: current + 1], self.judged, strict=False)
                ]
            )

    def result(self) -> Anytime:
        """Returns what was seen, for the record."""
        return Anytime(
            every=self.every,
            samples=self.samples,
            steps=self.steps,
            experience=self.experience,
            accuracy=self.accuracy,
            measures=measures(self.experience, self.accuracy),
        )


class PrequentialPlugin(SupervisedPlugin):
    """Predicts every minibatch, in eval mode, before it is learned from for the first time.

    It has to be the first of the plugins: samples that are replayed are added behind the new ones, and not predicted.
    """

    def __init__(
        self,
        window: int,
        paused: Callable[[], AbstractContextManager[None]],
        iterations: int = 1,
        masked: bool = False,
    ):
        """
        Args:
            window: samples.
            paused: within it, time is not the run's.
            iterations: steps in a row on every minibatch.
            masked: outputs of other experiences' classes are left out.
        """
        super().__init__()
        self.masked = masked
        self.window = window
        self.paused = paused
        self.iterations = iterations
        self.right: list[Tensor] = []

    def state_dict(self) -> State:
        """Returns which minibatches were told rightly so far."""
        return {"right": list(self.right)}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self.right = state["right"]

    state_dict_within, load_state_dict_within = state_dict, load_state_dict

    def before_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_epochs or strategy.clock.train_epoch_iterations % self.iterations:
            return
        with self.paused():
            new = slice(strategy.train_mb_size)
            x, y, tasks = strategy.mb_x[new], strategy.mb_y[new], strategy.mb_task_id[new]
            classes = classes_asked(strategy.experience, self.masked)
            self.right.append(right(strategy.model, x, y, tasks, classes).cpu())

    def result(self) -> Prequential:
        """Returns what was seen, for the record."""
        every = torch.cat(self.right).double()
        windows = [float(part.mean()) for part in every.split(self.window)]
        return Prequential(accuracy=float(every.mean()), window=self.window, windows=windows)


def right(model: nn.Module, x: Tensor, y: Tensor, tasks: Tensor, classes: Collection[int] | None = None) -> Tensor:
    """Returns whether each sample is told rightly by a network in eval mode, bool [N].

    Args:
        model: asked under the task labels, if it has several heads.
        x: inputs, [N, ...].
        y: labels, [N].
        tasks: labels, [N].
        classes: among which they are told apart; None for all.
    """
    with evaluation_mode(model), torch.no_grad():
        found = [
            only(classes, avalanche_forward(model, *parts)).argmax(1)
            for parts in zip(x.split(AT_ONCE), tasks.split(AT_ONCE), strict=True)
        ]
    return torch.cat(found) == y


def _sample(experience: CLExperience, samples: int | None, device: torch.device) -> list[Tensor]:
    """(x, y, task labels) of an experience's samples, or of some of them, always the same."""
    data = experience.dataset.eval()
    if samples is not None:
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(SEED))[:samples]
        data = data.subset(chosen.tolist())
    loader = DataLoader(data, len(data), collate_fn=data.collate_fn, generator=torch.Generator())
    return [column.to(device) for column in next(iter(loader))]
