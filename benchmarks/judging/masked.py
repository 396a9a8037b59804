"""Task-incremental accuracy of a network with one head: the outputs of other tasks' classes are left out.

Buzzega et al. 2020 (Mammoth's ``mask_classes``): one network, trained class-incrementally, is read twice. What is
trained, and what importances and buffers see, are all outputs.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from avalanche.benchmarks import CLExperience
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from engrams.strategies.kept import KeepsNothing, KeepsNothingWithin


def classes_asked(experience: CLExperience, masked: bool) -> Collection[int] | None:
    """Returns the classes among which an experience's samples are told apart; None for all that the network has."""
    return experience.classes_in_this_experience if masked else None


def only(classes: Collection[int] | None, outputs: Tensor) -> Tensor:
    """Returns outputs [N, K] with minus infinity for all but some classes."""
    if classes is None:
        return outputs
    asked = torch.tensor(sorted(classes), device=outputs.device)
    return torch.full_like(outputs, -torch.inf).index_copy_(1, asked, outputs[:, asked])


class TaskMaskPlugin(KeepsNothing, KeepsNothingWithin, SupervisedPlugin):
    """Masks the outputs in evaluation; it has to stand before plugins that read them."""

    def after_eval_forward(self, strategy, **kwargs):
        strategy.mb_output = only(strategy.experience.classes_in_this_experience, strategy.mb_output)
