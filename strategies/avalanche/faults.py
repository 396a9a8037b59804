"""Avalanche's strategies where the released version (0.6.0) does not do what it says, mended."""

from __future__ import annotations

import torch
from avalanche.benchmarks.utils import concat_datasets
from avalanche.training.plugins import MASPlugin, MIRPlugin, RWalkPlugin, SynapticIntelligencePlugin
from avalanche.training.plugins.mir import cycle
from torch.utils.data import DataLoader


class WorkingSynapticIntelligencePlugin(SynapticIntelligencePlugin):
    """Avalanche's synaptic intelligence, which has no effect on a CPU as it is released.

    It keeps old parameters by ``parameter.detach().cpu().flatten()``: on a GPU a copy, on a CPU the parameter itself,
    so that every distance from an old value is 0: no path integral, no importance, no penalty whatever its lambda. Here
    what it keeps is copied. (Not reported upstream as far as we know; issue 824 asks for the plugin to be checked
    against the paper.)

    It cuts importances at 0.001, far below what Zenke et al. 2017's equation 5 gives, so that most of those that matter
    are alike, and a strength of the paper, or of other people's code, does next to nothing. Here one says where.
    """

    def __init__(self, si_lambda: float, eps: float = 1e-7, clip_to: float = 0.001):
        """
        Args:
            si_lambda: of half the squared distances; twice the c of Zenke et al. 2017.
            eps: the damping xi of equation 5.
            clip_to: the largest importance.
        """
        super().__init__(si_lambda, eps)
        self.clip_to = clip_to

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        _copy(self.ewc_data[0])

    def before_training_iteration(self, strategy, **kwargs):
        super().before_training_iteration(strategy, **kwargs)
        _copy(self.syn_data["old_theta"])

    def after_training_exp(self, strategy, **kwargs):
        super().after_training_exp(strategy, **kwargs)
        for name, importance in self.ewc_data[1].items():
            importance.data = (-self.syn_data["cum_trajectory"][name].data).clamp(max=self.clip_to)


class WorkingMASPlugin(MASPlugin):
    """Avalanche's MAS, which ends in "Loss is not available" where the loss is 0, as it can be on easy data.

    It asks for ``not strategy.loss``, which is true of 0 as well. Here a loss of 0 becomes the smallest number above
    it, which changes no gradient.
    """

    def before_backward(self, strategy, **kwargs):
        if strategy.loss == 0:
            strategy.loss = strategy.loss + torch.finfo(strategy.loss.dtype).tiny
        super().before_backward(strategy, **kwargs)


class WorkingRWalkPlugin(RWalkPlugin):
    """Avalanche's Riemannian walk, which as it is released trains a network in evaluation mode.

    It measures a minibatch's gradients in that mode before every step and leaves the network in it: no dropout, and
    batch norm's statistics stay as they began. Here the step is taken in the mode that the network was in. An
    experience of fewer steps than ``delta_t`` is refused where it is the first: it has no score, and Avalanche divides
    by the largest.
    """

    def _update_grad(self, strategy):
        training = {module: module.training for module in strategy.model.modules()}
        super()._update_grad(strategy)
        for module, mode in training.items():
            module.training = mode

    def after_training_exp(self, strategy, *args, **kwargs):
        """
        Raises:
            ValueError: the first experience has no step after which the path is scored.
        """
        if self.exp_scores is None and not any((score.data > 0).any() for score in self.checkpoint_scores.values()):
            raise ValueError(
                f"Avalanche's Riemannian walk scores the path every {self.delta_t} steps (delta_t); the first "
                f"experience has none that raises a score. Lower delta_t, or train for longer"
            )
        super().after_training_exp(strategy, *args, **kwargs)


class WorkingMIRPlugin(MIRPlugin):
    """Avalanche's MIR, which as it is released never replays what the latest experience brought.

    When an experience ends it leaves the classes of its last minibatch out of what it replays, and keeps to that until
    the next one ends: made for streams whose experiences are single minibatches. Here all that the buffer holds is
    replayed in the next experience, which are images of earlier experiences alone, as Aljundi et al. 2019 have it.
    """

    def after_training_exp(self, strategy, **kwargs):
        super().after_training_exp(strategy, **kwargs)
        buffer = concat_datasets([group.buffer for group in self.storage_policy.buffer_groups.values()])
        self.replay_loader = None
        if len(buffer) > self.batch_size_mem:
            self.replay_loader = cycle(DataLoader(buffer, batch_size=self.subsample, shuffle=True))


def _copy(kept) -> None:
    for entry in kept.values():
        entry.data = entry.data.clone()
