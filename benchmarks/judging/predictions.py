"""What a strategy answers in evaluation, sample by sample."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from engrams.reports.predictions import Predictions
from engrams.strategies.kept import KeepsNothingWithin, State

KIND = torch.int16
"""Of the classes, until they are written."""


class PredictionsPlugin(KeepsNothingWithin, SupervisedPlugin):
    """Keeps the answers of the evaluations that it is told to keep: a plugin may evaluate while it learns, too."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: dict[int, tuple[Tensor, Tensor]] = {}
        """Experience -> answers and targets of the latest evaluation."""
        self.targets: dict[int, Tensor] = {}
        """Experience -> classes."""
        self.answers: list[dict[int, Tensor]] = []
        """One for each evaluation that is kept: experience -> classes."""

    def before_eval(self, strategy, **kwargs):
        self._latest = {}

    def before_eval_exp(self, strategy, **kwargs):
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def after_eval_iteration(self, strategy, **kwargs):
        # Among equals the one that Avalanche's accuracy takes.
        self._parts["answers"].append(torch.max(strategy.mb_output, 1)[1].to(KIND).cpu())
        self._parts["targets"].append(strategy.mb_y.to(KIND).cpu())

    def after_eval_exp(self, strategy, **kwargs):
        experience = strategy.experience.current_experience
        self._latest[experience] = torch.cat(self._parts["answers"]), torch.cat(self._parts["targets"])

    def keep(self) -> None:
        """Keeps the answers of the latest evaluation."""
        self.answers.append({experience: answers for experience, (answers, _) in self._latest.items()})
        self.targets.update({experience: targets for experience, (_, targets) in self._latest.items()})

    def state_dict(self) -> State:
        """Returns what was answered so far."""
        return {"targets": self.targets, "answers": self.answers}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self.targets, self.answers = state["targets"], state["answers"]

    def result(self, after_initialisation: bool) -> Predictions:
        """Returns what was answered, to be written beside the record.

        Args:
            after_initialisation: the first evaluation was before training; what a later one did not ask for, since it
                cannot have changed, is what that one found.
        """
        order = sorted(self.targets)
        initial = self.answers[0] if after_initialisation else {}
        rows = [{**initial, **found} for found in self.answers]
        joined = [torch.cat([row[experience] for experience in order]).numpy() for row in rows]
        return Predictions(
            targets=torch.cat([self.targets[experience] for experience in order]).numpy(),
            experience=np.repeat(order, [len(self.targets[experience]) for experience in order]),
            answers=np.stack(joined[1:] if after_initialisation else joined),
            at_initialisation=joined[0] if after_initialisation else np.empty(0, np.int16),
        )
