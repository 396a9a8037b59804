"""Avalanche's iCaRL (Rebuffi et al. 2017, arXiv:1611.07725), on any stream whose classes do not come back."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.models import IncrementalClassifier, MultiTaskModule, NCMClassifier
from avalanche.training import ICaRL
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

CLASSIFIER = "classifier"


def avalanche_icarl(mem_size: int, template: dict[str, Any]) -> ICaRL:
    """Returns Avalanche's iCaRL.

    A sigmoid a class is trained, with the old network's outputs for targets of the old classes; a buffer of exemplars,
    chosen by herding, is learned together with every experience; the class of the nearest mean of exemplars is
    answered. All that is Avalanche's, but that a class that has not been met is never answered.

    Args:
        mem_size: images in the buffer, in equal parts for the classes met.
        template: of Avalanche's template; the model's output layer is called ``classifier``. Its loss is not used:
            iCaRL has its own.

    Raises:
        ValueError: the model's classifier grows, or is one a task.
    """
    model = template.pop("model")
    template.pop("criterion")
    if any(isinstance(module, (MultiTaskModule, IncrementalClassifier)) for module in model.modules()):
        raise ValueError(
            "Avalanche's iCaRL compares outputs with those of the network before: it needs one classifier that does "
            "not grow, as class-incremental protocols and task-incremental ones have it with network.all_classes"
        )
    classifier = model.get_submodule(CLASSIFIER)
    model.set_submodule(CLASSIFIER, nn.Identity())
    strategy = ICaRL(
        feature_extractor=model,
        classifier=classifier,
        memory_size=mem_size,
        buffer_transform=None,
        fixed_memory=True,
        **template | {"plugins": [*template["plugins"], ClassesInOrder()]},
    )
    strategy.model.eval_classifier = NearestMeanOfClassesMet(normalize=True)
    return strategy


class ClassesInOrder(SupervisedPlugin):
    """Gives every experience a benchmark that knows the order of its classes, which iCaRL asks for.

    Avalanche's class-incremental benchmarks know it, and are left alone; others do not.
    """

    def before_training_exp(self, strategy, **kwargs):
        """
        Raises:
            ValueError: a class comes back, which iCaRL cannot learn again.
        """
        experience = strategy.experience
        classes = [sorted(other.classes_in_this_experience) for other in experience.origin_stream]
        order = [label for some in classes for label in some]
        twice = [label for label, times in Counter(order).items() if times > 1]
        if twice:
            raise ValueError(
                f"Avalanche's iCaRL learns a class in one experience and in no other; class {twice[0]} comes back"
            )
        if not hasattr(experience, "benchmark"):
            experience.benchmark = SimpleNamespace(
                n_classes_per_exp=[len(some) for some in classes], classes_order=order
            )


class NearestMeanOfClassesMet(NCMClassifier):
    """Avalanche's classifier by the nearest mean, which as it is released may answer a class that it has not met.

    Such a class has a mean of zero, at a distance of 1 from every normalised vector of features: nearer than every mean
    whose cosine with it is below 1/2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the negative distances [N, classes] of features [N, F]; minus infinity for classes not met."""
        scores = super().forward(x)
        met = self.class_means.any(dim=1).to(scores.device)
        return scores.masked_fill(~met, -torch.inf) if met.any() else scores
