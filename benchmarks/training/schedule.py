"""Learning-rate schedules within an experience."""

from __future__ import annotations

from avalanche.training.plugins import SupervisedPlugin
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, MultiStepLR

from engrams.strategies.kept import KeepsNothing, State


def scheduler(schedule: str, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Returns what sets the learning rate after every one of so many steps.

    Args:
        schedule: ``linear``: from its value to zero. ``steps``: a tenth of it from the middle on, a hundredth from
            three quarters on.
        optimizer: whose rate is set.
        steps: of one experience.
    """
    if schedule == "linear":
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
    return MultiStepLR(optimizer, milestones=[steps // 2, steps * 3 // 4], gamma=0.1)


class Decay(KeepsNothing, SupervisedPlugin):
    """The learning rate falls over the steps of every experience, and begins the next one where it began.

    Avalanche's LRSchedulerPlugin takes a scheduler whose length is fixed; experiences differ in theirs.
    """

    _scheduler: LRScheduler | None = None
    _gone_on_from: State | None = None

    def __init__(self, schedule: str):
        """
        Args:
            schedule: as for :func:`scheduler`.
        """
        super().__init__()
        self.schedule = schedule

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
            self._scheduler = scheduler(self.schedule, strategy.optimizer, steps)
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
