"""What watches a training: how far it is, and whether it still learns numbers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from avalanche.training import GenerativeReplay
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from engrams.reports.errors import UserError
from engrams.strategies.generator_training import GeneratorPlugin, GeneratorTemplate
from engrams.strategies.kept import KeepsNothing, KeepsNothingWithin, State


class Diverged(UserError):
    """Training went wrong in a way that the user can mend; the message says how."""


Losses = Callable[[int, dict[str, float]], None]
"""Told the number of epochs done, and the mean losses of the last one by name."""


def watch(
    strategy: SupervisedTemplate,
    report: Callable[[int], None],
    losses: Losses = lambda epoch, losses: None,
    already: int = 0,
) -> None:
    """Tells the number of epochs done, the generator's among them, and their losses, and stops what diverges.

    Args:
        strategy: before it is trained.
        report, losses: told.
        already: epochs that were done before, in another process.
    """
    done = count(already + 1)

    def epoch_done(name: str, loss: Tensor) -> None:
        epoch = next(done)
        report(epoch)
        losses(epoch, {name: loss.item()})

    # First of the plugins: what went wrong is neither logged nor trained on.
    strategy.plugins.insert(0, WatchTraining(epoch_done))
    if isinstance(strategy, GeneratorTemplate):
        generator = WatchGenerator(epoch_done, "the generator's", "its learning rate or the penalty's lambda")
        strategy.plugins.insert(0, generator)
    if isinstance(strategy, GenerativeReplay):  # Avalanche's, whose generator is trained by a strategy of its own
        generator = WatchGeneratorsStrategy(epoch_done, "the generator's", "its learning rate")
        strategy.generator_strategy.plugins.insert(0, generator)


class Watch(KeepsNothing):
    """Tells how far a training is, and stops it once a loss or a parameter is no number any more."""

    def __init__(
        self,
        epoch_done: Callable[[str, Tensor], None],
        whose: str = "the",
        too_high: str = "the learning rate or the penalty's lambda",
    ):
        """
        Args:
            epoch_done: called after every epoch, with a name and its mean loss.
            whose: the loss and the parameters are; what is said begins with it.
            too_high: what to lower where it diverges.
        """
        super().__init__()
        self.epoch_done = epoch_done
        self.whose = whose
        self.too_high = too_high

    def check_loss(self, strategy: SupervisedTemplate, loss: Tensor) -> None:
        # A loss that is NaN or infinite leaves parameters that keep it so: once an epoch is often enough.
        if not torch.isfinite(loss).all():
            self._stop(strategy, f"{self.whose} training loss became {loss.item()}")

    def check_parameters(self, strategy: SupervisedTemplate, network: nn.Module) -> None:
        bad = (name for name, parameter in network.named_parameters() if not torch.isfinite(parameter).all())
        if name := next(bad, None):
            self._stop(strategy, f"{self.whose} parameter {name} is no finite number any more")

    def _stop(self, strategy: SupervisedTemplate, what: str) -> None:
        raise Diverged(f"{what} in experience {strategy.experience.current_experience}; lower {self.too_high}")


class WatchTraining(Watch, SupervisedPlugin):
    """Watches a strategy's own training, that of its model."""

    name = "training"
    total: Tensor = torch.zeros(())
    iterations = 0

    def state_dict_within(self) -> State:
        """Returns the sum of the epoch's losses so far."""
        return {"total": self.total, "iterations": self.iterations}

    def load_state_dict_within(self, state: State) -> None:
        """Goes on from a state."""
        self.total, self.iterations = state["total"], state["iterations"]

    def before_training_epoch(self, strategy, **kwargs):
        self.total, self.iterations = torch.zeros(()), 0

    def after_training_iteration(self, strategy, **kwargs):
        self.total = self.total + strategy.loss.detach()
        self.iterations += 1

    def after_training_epoch(self, strategy, **kwargs):
        self.check_loss(strategy, strategy.loss)
        self.epoch_done(self.name, self.total / max(1, self.iterations))

    def after_training_exp(self, strategy, **kwargs):
        # The last step is taken after its loss was looked at.
        self.check_parameters(strategy, strategy.model)


class WatchGeneratorsStrategy(WatchTraining):
    """Watches a generator that is trained by a strategy of its own."""

    name = "generator"


class WatchGenerator(KeepsNothingWithin, Watch, GeneratorPlugin):
    """Watches the training of the generator that a strategy has besides."""

    def after_generator_epoch(self, strategy, **kwargs):
        self.check_loss(strategy, strategy.generator_loss)
        self.check_parameters(strategy, strategy.generator)  # a GAN's generator has no part in the critic's loss
        self.epoch_done("generator", strategy.generator_loss)
