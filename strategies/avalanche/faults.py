"""Avalanche's strategies where the released version (0.6.0) does not do what it says, mended."""

from __future__ import annotations

import torch
from avalanche.benchmarks.utils import concat_datasets
from avalanche.training.plugins import MASPlugin, MIRPlugin, RWalkPlugin, SynapticIntelligencePlugin
from avalanche.training.plugins.mir import cycle
from avalanche.training.utils import copy_params_dict, zerolike_params_dict
from torch.utils.data import DataLoader


class WorkingSynapticIntelligencePlugin(SynapticIntelligencePlugin):
    """Avalanche's synaptic intelligence, which has no effect on a CPU as it is released.

    It keeps old parameters by ``parameter.detach().cpu().flatten()``: on a GPU a copy, on a CPU the parameter itself,
    so that every distance from an old value is 0: no path integral, no importance, no penalty whatever its lambda. Here
    what it keeps is copied. (Not reported upstream as far as we know; issue 824 asks for the plugin to be checked
    against the paper.)

    It sets every importance above 0.001 to 0.001, as AR1 does (Maltoni & Lomonaco 2019, arXiv:1806.08568), from which
    it comes. Zenke et al. 2017 do not. With the limit a strength from another code may have hardly any effect;
    ``clip_to`` moves it. Importances below 0 have no limit. They push a parameter away from its old value, and with a
    large strength training diverges; ``negatives=False`` makes them 0.
    """

    def __init__(self, si_lambda: float, eps: float = 1e-7, clip_to: float = 0.001, negatives: bool = True):
        """
        Args:
            si_lambda: of half the squared distances; twice the c of Zenke et al. 2017.
            eps: the damping xi of equation 5.
            clip_to: the largest importance.
            negatives: whether importances below 0 are kept.
        """
        super().__init__(si_lambda, eps)
        self.clip_to = clip_to
        self.negatives = negatives

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        _copy(self.ewc_data[0])

    def before_training_iteration(self, strategy, **kwargs):
        super().before_training_iteration(strategy, **kwargs)
        _copy(self.syn_data["old_theta"])

    def after_training_exp(self, strategy, **kwargs):
        super().after_training_exp(strategy, **kwargs)
        for name, importance in self.ewc_data[1].items():
            path = -self.syn_data["cum_trajectory"][name].data
            importance.data = path.clamp(None if self.negatives else 0, self.clip_to)


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
    batch norm's statistics stay as they began. Here the step is taken in the mode that the network was in; the
    gradients whose gain is scored are still those of evaluation mode. It also ends in a KeyError where a head is added
    for a task (parameters that are new have no checkpoint); here they get one. Such parameters are never penalised. A
    first experience without a score above 0 is refused, since Avalanche divides by the largest score. (None of it
    reported upstream as far as we know.)
    """

    def before_training_exp(self, strategy, *args, **kwargs):
        for kept, new in (
            (self.checkpoint_loss, zerolike_params_dict(strategy.model)),
            (self.checkpoint_scores, zerolike_params_dict(strategy.model)),
            (self.checkpoint_params, copy_params_dict(strategy.model)),
        ):
            kept.update({name: entry for name, entry in new.items() if name not in kept})

    def _update_grad(self, strategy):
        training = {module: module.training for module in strategy.model.modules()}
        super()._update_grad(strategy)
        for module, mode in training.items():
            module.training = mode

    def after_training_exp(self, strategy, *args, **kwargs):
        """
        Raises:
            ValueError: no score is above 0, or no gradient is other than 0.
        """
        if self.exp_scores is None and not _any_above_zero(self.checkpoint_scores):
            raise ValueError(
                f"Avalanche's Riemannian walk scores the path every {self.delta_t} steps (delta_t); the first "
                f"experience has none that raises a score. Lower delta_t, or train for longer"
            )
        if not _any_above_zero(self.iter_importance or {}):
            raise ValueError(
                "Avalanche's Riemannian walk divides by the largest entry of its Fisher, and here all are 0: the loss "
                "of the latest minibatches has no gradient. Train for fewer epochs"
            )
        super().after_training_exp(strategy, *args, **kwargs)


class WorkingMIRPlugin(MIRPlugin):
    """Avalanche's MIR, which as it is released never replays what the latest experience brought.

    When an experience ends it leaves the classes of its last minibatch out of what it replays, and keeps to that until
    the next one ends: made for streams whose experiences are single minibatches. Here all that the buffer holds is
    replayed in the next experience, which are images of earlier experiences alone, as Aljundi et al. 2019 have it.

    Of candidates that are fewer than what is replayed it takes too few, even fewer than there are: a pass over the
    buffer that would end with such a rest ends before it here.
    """

    def after_training_exp(self, strategy, **kwargs):
        super().after_training_exp(strategy, **kwargs)
        buffer = concat_datasets([group.buffer for group in self.storage_policy.buffer_groups.values()])
        self.replay_loader = None
        if len(buffer) > self.batch_size_mem:
            rest_is_short = len(buffer) % self.subsample < self.batch_size_mem
            loader = DataLoader(buffer, self.subsample, shuffle=True, drop_last=rest_is_short)
            self.replay_loader = cycle(loader)


def _any_above_zero(values) -> bool:
    return any(bool((entry.data > 0).any()) for entry in values.values())


def _copy(kept) -> None:
    for entry in kept.values():
        entry.data = entry.data.clone()
