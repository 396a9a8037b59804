"""A solver looked at while it learns: every so many steps, and before it learns from a minibatch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from avalanche.benchmarks import CLExperience
from avalanche.training import ER_ACE
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised.er_aml import ER_AML
from torch import Tensor
from torch.utils.data import DataLoader

from engrams.benchmarks.data.loading import learns_its_experience, new_sample_count
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

    At the end it is that of the answers which the evaluation after the experience has (:meth:`at_end`), of the same
    samples, so that a network that is changed there, or asked in another way than while it learns (iCaRL's nearest
    mean), is judged as in the accuracy matrix.

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

    def _look(self, strategy) -> None:
        with self.paused():
            current = strategy.experience.current_experience
            while len(self.columns) <= current:
                self.columns.append(_sample(self.judged[len(self.columns)], self.samples, strategy.device))
            row = [
                float(right(strategy, x, y, tasks, classes_asked(experience, self.masked)).double().mean())
                for (x, y, tasks), experience in zip(self.columns[: current + 1], self.judged, strict=False)
            ]
            self._add(current, row)

    def at_end(self, current: int, answers: Mapping[int, Tensor], targets: Mapping[int, Tensor]) -> None:
        """Adds the moment at the end of an experience, in place of one that was measured at the same step.

        Args:
            current: the experience that has been learned.
            answers, targets: experience -> classes of all its samples, [N].
        """
        if self.experience and (self.steps[-1], self.experience[-1]) == (self._done, current):
            del self.steps[-1], self.experience[-1], self.accuracy[-1]
        right = (answers[place] == targets[place] for place in range(current + 1))
        self._add(current, [float(one[_chosen(len(one), self.samples)].double().mean()) for one in right])

    def _add(self, current: int, row: list[float]) -> None:
        self.steps.append(self._done)
        self.experience.append(current)
        self.accuracy.append(row)

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
    """Predicts every sample of the stream, in eval mode, before it is learned from for the first time.

    It has to be the first of the plugins: samples that are replayed stand behind the new ones, and are not predicted.
    Where a strategy trains on other samples than the experience's, old ones among them (cumulative training, iCaRL,
    GDumb), or replays samples that are still to come (Avalanche's ER-ACE and ER-AML), nobody can tell which are new,
    and there is no such accuracy.
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
        self.mixed = False
        """Whether old samples were among those trained on."""

    def state_dict(self) -> State:
        """Returns which samples were told rightly so far."""
        return {"right": list(self.right), "mixed": self.mixed}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self.right, self.mixed = state["right"], state["mixed"]

    state_dict_within, load_state_dict_within = state_dict, load_state_dict

    def before_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_epochs or strategy.clock.train_epoch_iterations % self.iterations:
            return
        # Avalanche's ER-ACE and ER-AML replay an experience's samples from its beginning on.
        self.mixed = self.mixed or isinstance(strategy, ER_ACE | ER_AML) or not learns_its_experience(strategy)
        if self.mixed:
            return
        with self.paused():
            new = slice(new_sample_count(strategy, self.iterations))
            x, y, tasks = strategy.mb_x[new], strategy.mb_y[new], strategy.mb_task_id[new]
            classes = classes_asked(strategy.experience, self.masked)
            self.right.append(right(strategy, x, y, tasks, classes).cpu())

    def result(self) -> Prequential | None:
        """Returns what was seen, for the record; None where the stream's samples cannot be told from old ones."""
        if self.mixed:
            return None
        every = torch.cat(self.right).double()
        windows = [float(part.mean()) for part in every.split(self.window)]
        return Prequential(accuracy=float(every.mean()), window=self.window, windows=windows)


def right(strategy, x: Tensor, y: Tensor, tasks: Tensor, classes: Collection[int] | None = None) -> Tensor:
    """Returns whether each sample is told rightly by a strategy whose network is in eval mode, bool [N].

    Args:
        strategy: asked by its own ``forward``, which may be more than its network's.
        x: inputs, [N, ...].
        y: labels, [N].
        tasks: labels, [N].
        classes: among which they are told apart; None for all.
    """
    kept = strategy.mbatch, strategy.is_training
    found = []
    with evaluation_mode(strategy.model), torch.no_grad():
        try:
            strategy.is_training = False
            for strategy.mbatch in zip(*(column.split(AT_ONCE) for column in (x, y, tasks)), strict=True):
                found.append(only(classes, strategy.forward()).argmax(1))
        finally:
            strategy.mbatch, strategy.is_training = kept
    return torch.cat(found) == y


def _chosen(count: int, samples: int | None) -> Tensor:
    """The places of the samples that are looked at, of so many: always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SEED))[:samples]


def _sample(experience: CLExperience, samples: int | None, device: torch.device) -> list[Tensor]:
    """(x, y, task labels) of an experience's samples, or of some of them, always the same."""
    data = experience.dataset.eval()
    if samples is not None:
        data = data.subset(_chosen(len(data), samples).tolist())
    loader = DataLoader(data, len(data), collate_fn=data.collate_fn, generator=torch.Generator())
    return [column.to(device) for column in next(iter(loader))]
