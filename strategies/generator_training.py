"""What strategies that train a generator have in common: how it learns an experience."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import trigger_plugins
from torch import Tensor
from torch.utils.data import DataLoader

from engrams.strategies.generators import Generator
from engrams.strategies.generators.generator import Sampler
from engrams.strategies.kept import State, restore_within, state_within

READ_AT_ONCE = 1000


class GeneratorPlugin(SupervisedPlugin):
    """What a plugin of a strategy with a generator may have besides Avalanche's hooks."""

    def after_generator_epoch(self, strategy, **kwargs):
        """The generator has learned for an epoch; ``strategy.generator_loss`` is its mean loss."""


class GeneratorTemplate(SupervisedTemplate):
    """Avalanche's template with a generator."""

    PLUGIN_CLASS = GeneratorPlugin

    generator: Generator
    generator_loss: Tensor | None = None
    classes_so_far: Sequence[int] = ()
    """The classes that the generator has learned, sorted."""
    _learns = False
    """Whether the generator is learning now (the solver learns after it)."""
    _gone_on_from: State | None = None

    def state_dict(self) -> State:
        """Returns what was learned besides the model; asked for between two experiences."""
        generator = None if self.generator is self.model else self._copied(self.generator.state_dict())
        return {"generator": generator, "classes_so_far": list(self.classes_so_far)}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state; after the model has its own."""
        if state["generator"] is not None:
            self.generator.load_state_dict(state["generator"])
        self.classes_so_far = state["classes_so_far"]

    def state_dict_within(self) -> State:
        """Returns what the generator has learned of the experience; whole, or between two of its epochs.

        Raises:
            Unkept: it does not say what it has learned between two epochs.
        """
        if not self._learns:
            return self.state_dict() | {"learns": False}
        return {"generator": self._copied(state_within(self.generator)), "learns": True}

    def load_state_dict_within(self, state: State) -> None:
        """Goes on from a state in the experience that is being begun."""
        self._gone_on_from = state

    def _copied(self, state: State) -> State:
        """Returns a state of the generator that does not change with it."""
        return deepcopy(state, {id(one): one for one in self.generator.in_common()})

    def _asked_for(self, labels: Tensor, columns: Sequence[Any]) -> Tensor:
        """What the generator is to call the classes [N] of an experience, given all columns of its minibatches."""
        return labels

    def _before_learning(self, images: Tensor, labels: Tensor) -> None:
        """Refuses images [N, ...] and classes [N] that the strategy can do nothing with."""

    def _train_generator(
        self, replay: Sampler | None = None, r: float = 1.0, num_workers: int = 0, **kwargs: Any
    ) -> None:
        """Trains the generator on the experience's images; see :meth:`Generator.learn`.

        Args:
            replay, r: as for the generator.
            num_workers: of the loader, as in Avalanche's ``train``.
            kwargs: what else ``train`` was told, which is the solver's.

        Raises:
            ValueError: before anything is trained, where the experience's inputs are no tensors, its labels no classes,
                the images not what the generator was promised, or the strategy can do nothing with them.
        """
        within, self._gone_on_from = self._gone_on_from, None
        if within and not within["learns"]:
            GeneratorTemplate.load_state_dict(self, within)
            return
        dataset = self.adapted_dataset
        # A loader takes a random number even where it draws nothing by it: its own, not the solver's.
        loader = DataLoader(
            dataset,
            READ_AT_ONCE,
            collate_fn=dataset.collate_fn,
            generator=torch.Generator(),
            num_workers=num_workers,
        )
        columns = list(zip(*loader, strict=True))
        if len(columns) < 2 or not all(isinstance(part, Tensor) for part in (columns[0][0], columns[1][0])):
            found = ", ".join(type(column[0]).__name__ for column in columns)
            raise ValueError(
                f"a generator learns samples of one tensor and its class; the experience's batches hold: {found}"
            )
        images, labels = (torch.cat(column).to(self.device) for column in columns[:2])
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(
                "generative replay is for classification: labels must be classes, integers [N]; the experience's are "
                f"{str(labels.dtype).removeprefix('torch.')} of shape {list(labels.shape)}"
            )
        self.generator.check(images)  # as its own learn does, if it is one of ours
        self._before_learning(images, labels)
        if within:
            restore_within(self.generator, within["generator"])
        self._learns = True
        for loss in self.generator.learn(images, replay, r, self._asked_for(labels, columns)):
            self.generator_loss = loss
            trigger_plugins(self, "after_generator_epoch")
        self._learns = False
        self.classes_so_far = sorted({*self.classes_so_far, *labels.tolist()})
