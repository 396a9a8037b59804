"""The heads of several tasks in generative replay: whose answer is to be kept, and which outputs are answers at all.

A replayed input has no task label. The task is drawn among those of the past: the input's answer under that head is
what is to be kept, and on average all heads are (van de Ven et al. 2022 take the mean over them). A solver with one
head is the same with one task and without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from engrams.strategies.experiences import Met

MASKED = -1000.0
"""An output that is no answer, as Avalanche's own heads have it."""


class TaskClasses:
    """One number for each class of each task, where heads have classes that are called alike.

    A generator that is asked for a class knows nothing of tasks: class 0 of two heads would be one class to it.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []
        """Number -> (task label, class)."""

    def numbered(self, tasks: Tensor, classes: Tensor) -> Tensor:
        """Returns the numbers of classes [N] of tasks [N], int64 [N]; those that are new get the next ones."""
        pairs, which = torch.stack([tasks, classes], dim=1).unique(dim=0, return_inverse=True)
        found = [(int(task), int(class_)) for task, class_ in pairs]
        self.pairs += [pair for pair in found if pair not in self.pairs]
        return torch.tensor([self.pairs.index(pair) for pair in found], device=classes.device)[which]

    def told_apart(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the tasks [N] and the classes [N] of numbers [N]."""
        tasks, classes = torch.tensor(self.pairs, device=numbers.device)[numbers].unbind(dim=1)
        return tasks, classes


class Heads:
    """Those of a solver that has met these experiences."""

    def __init__(self, met: Sequence[Met], solver: nn.Module, device: torch.device):
        """
        Args:
            met: the experiences, with their classes where the solver has several heads.
            solver: tells whether there are several.
            device: of the solver.
        """
        self.known = torch.tensor(sorted({task for experience in met for task in experience.task_labels}))
        """The tasks met."""
        sizes: dict[int, int] = {}
        for experience in met if is_multi_task_module(solver) else ():
            for task in experience.task_labels:
                sizes[task] = max(sizes.get(task, 0), max(experience.classes_in_this_experience) + 1)
        self.sizes = torch.tensor(
            [sizes.get(task, 0) for task in range(max(sizes, default=-1) + 1)], dtype=torch.int64, device=device
        )
        """Task label -> classes met under it; empty where there is one head."""

    def draw(self, n: int, random: torch.Generator) -> Tensor:
        """Returns ``n`` of the tasks met, each as likely as the others, int64 [n]."""
        return self.known[torch.randint(len(self.known), (n,), generator=random)].to(self.sizes.device)

    def answered(self, outputs: Tensor, tasks: Tensor) -> Tensor:
        """A solver's outputs for inputs of these tasks [N], with those masked that are no answers: [N, outputs].

        Where heads differ in size, Avalanche fills the rows of the smaller up with zeros, as if they were answers.
        """
        if not len(self.sizes):
            return outputs
        beyond = torch.arange(outputs.shape[1], device=outputs.device) >= self.sizes[tasks][:, None]
        return outputs.masked_fill(beyond, MASKED)
