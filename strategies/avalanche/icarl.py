"""Avalanche's iCaRL (Rebuffi et al. 2017, arXiv:1611.07725), on any stream whose classes do not come back."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.models import IncrementalClassifier, MultiTaskModule, NCMClassifier
from avalanche.training import ICaRL
from avalanche.training.supervised.icarl import _ICaRLPlugin
from torch import Tensor, nn
from torch.nn.functional import normalize

CLASSIFIER = "classifier"


def avalanche_icarl(mem_size: int, mirrored_means: bool, template: dict[str, Any]) -> ICaRL:
    """Returns Avalanche's iCaRL.

    A sigmoid a class is trained, with the old network's outputs for targets of the old classes; a buffer of exemplars,
    chosen by herding, is learned together with every experience; the class of the nearest mean of exemplars is
    answered. All that is Avalanche's, but that a class that has not been met is never answered.

    Args:
        mem_size: images in the buffer, in equal parts for the classes met.
        mirrored_means: a mean is of the exemplars' mirror images as well, as Avalanche has it and the paper's code for
            natural images. Of digits it should not be.
        template: of Avalanche's template; the model's output layer is called ``classifier``. Its loss is not used:
            iCaRL has its own.

    Raises:
        ValueError: the model's classifier grows, or is one a task.
    """
    model = template["model"]
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
        **{name: value for name, value in template.items() if name not in ("model", "criterion")},
    )
    strategy.model.eval_classifier = NearestMeanOfClassesMet()
    place = next(n for n, plugin in enumerate(strategy.plugins) if isinstance(plugin, _ICaRLPlugin))
    strategy.plugins[place] = ExemplarsPlugin(mem_size, mirrored_means)
    return strategy


class ExemplarsPlugin(_ICaRLPlugin):
    """Avalanche's buffer of exemplars, for streams that do not know the order of their classes, and for digits.

    Avalanche's class-incremental benchmarks know that order; for others it is taken from the stream. Means are the
    same as Avalanche's to rounding, where they are mirrored.
    """

    def __init__(self, mem_size: int, mirrored_means: bool):
        super().__init__(mem_size)
        self.mirrored_means = mirrored_means

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
        super().before_training_exp(strategy, **kwargs)

    @torch.no_grad()
    def compute_class_means(self, strategy):
        """Gives the classifier the mean of the normalised features of each class's exemplars, itself normalised."""
        means = {}
        for x, labels in zip(self.x_memory, self.y_memory, strict=True):
            views = [x, x.flip(3)] if self.mirrored_means and x.dim() == 4 else [x]
            features = [strategy.model.feature_extractor(view.to(strategy.device)) for view in views]
            means[labels[0]] = normalize(normalize(torch.cat(features)).mean(dim=0), dim=0)
        strategy.model.eval_classifier.replace_class_means_dict(means)


class NearestMeanOfClassesMet(NCMClassifier):
    """Avalanche's classifier by the nearest mean, which as it is released may answer a class that it has not met.

    Such a class has a mean of zero, at a distance of 1 from every normalised vector of features: nearer than every mean
    whose cosine with it is below 1/2. The means are no part of the model's state: iCaRL loads the state of the network
    after every experience into a copy, which fails where their number has grown.
    """

    def __init__(self) -> None:
        super().__init__(normalize=True)
        self.register_buffer("class_means", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the negative distances [N, classes] of features [N, F]; minus infinity for classes not met."""
        scores = super().forward(x)
        met = self.class_means.any(dim=1).to(scores.device)
        return scores.masked_fill(~met, -torch.inf) if met.any() else scores
