"""Learning-rate schedules within an experience."""

from __future__ import annotations

from avalanche.training.plugins import SupervisedPlugin
from torch.optim.lr_scheduler import LinearLR

from engrams.strategies.kept import KeepsNothing, State


class LinearDecay(KeepsNothing, SupervisedPlugin):
    """The learning rate falls linearly from its value to zero over the steps of every experience.

    Avalanche's LRSchedulerPlugin takes a scheduler whose length is fixed; experiences differ in theirs.
    """

    _scheduler: LinearLR | None = None
    _gone_on_from: State | None = None

    def state_dict_within(self) -> State:
        """Returns how far the rate has fallen; the rate itself is the optimiser's to keep."""
        return {"scheduler": self._scheduler.state_dict() if self._scheduler else None}

    def load_state_dict_within(self, state: State) -> None:
        """Goes on from a state in the next step."""
        self._gone_on_from = state["scheduler"]

    def before_training_exp(self, strategy, **kwargs):
        self._scheduler = None
        self._rates = [group["lr"] for group in strategy.optimizer.param_groups]

    def before_training_iteration(self, strategy, **kwargs):
        if self._scheduler is None:  # only now has every plugin had its say on the data loader
            steps = strategy.train_epochs * len(strategy.dataloader)
            self._scheduler = LinearLR(strategy.optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
            if self._gone_on_from:
                self._scheduler.load_state_dict(self._gone_on_from)
                self._gone_on_from = None

    def after_training_iteration(self, strategy, **kwargs):
        assert self._scheduler is not None
        self._scheduler.step()

    def after_training_exp(self, strategy, **kwargs):
        for group, rate in zip(strategy.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
            group.pop("initial_lr", None)
