"""Dark experience replay: what is rehearsed are the outputs that the network had when it saw a sample.

Buzzega, Boschini, Porrello, Abati & Calderara 2020, "Dark Experience for General Continual Learning: a Strong, Simple
Baseline" (NeurIPS, arXiv 2004.07211), Algorithm 1 (DER) and Algorithm 2 (DER++). In every step, with z' the outputs
kept with x', and (x', z') and (x'', y'') drawn from the memory one after the other:

    loss + alpha ||z' - h(x')||^2 / K + beta l(y'', h(x''))

where h gives the network's K outputs (logits) and l is the strategy's criterion, in the paper cross-entropy; DER has no
last term. The 1/K is the public code's (aimagelab/mammoth, models/der.py: a mean over outputs). The memory is a
reservoir of everything seen so far, the present experience included, so that neither task labels nor the ends of
experiences are needed.

Where images are augmented, z' are the outputs for x' as it was augmented then; x' is kept as it came, and augmented
anew whenever it is drawn, as the public code does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from engrams.strategies.arguments import at_least_one, not_negative
from engrams.strategies.networks import loss_of, minibatch_of, refuse_no_tensor
from engrams.strategies.rehearsal import ReservoirPlugin
from engrams.strategies.reservoir import Reservoir


class DERPlugin(ReservoirPlugin):
    """Dark experience replay, under any Avalanche strategy.

    It has to stand before plugins that change a minibatch's images: the memory keeps them as they come, and what it
    replays is changed with the new ones. What a data set's own transformations have drawn for a sample stays with it.
    """

    def __init__(self, mem_size: int, alpha: float, beta: float = 0.0, batch_size_mem: int | None = None):
        """
        Args:
            mem_size: samples in the memory, at least 1. What is kept and what is drawn is decided by torch's global
                generator.
            alpha: of the distance between outputs, above, >= 0.
            beta: of the strategy's criterion on the samples, above, >= 0; 0 is DER, more is DER++.
            batch_size_mem: samples drawn in a step, for each of the two terms; None for as many as the minibatch has.

        Raises:
            ValueError: an argument outside its range; in the first step, before anything is learned, samples or
                outputs that are not made of tensors.
        """
        super().__init__()
        not_negative(alpha=alpha, beta=beta)
        at_least_one(batch_size_mem=batch_size_mem)
        self.mem_size, self.alpha, self.beta, self.batch_size_mem = mem_size, alpha, beta, batch_size_mem
        self._forget()

    def _forget(self) -> None:
        self.memory = Reservoir(self.mem_size, growing=("outputs",))
        self._new: list[Tensor] = []
        self._drawn: list[list[Tensor]] = []
        self._outputs: list[Tensor] = []

    def before_training_iteration(self, strategy, **kwargs):
        self._new = self.new_samples(strategy)
        count = self.batch_size_mem or len(self._new[0])
        terms = (2 if self.beta else 1) if len(self.memory) else 0
        drawn = [self.memory.draw(count, strategy.device) for _ in range(terms)]
        self._outputs = [part["outputs"] for part in drawn]
        self.put_behind(strategy, *([part[str(place)] for place in range(len(self._new))] for part in drawn))

    def before_forward(self, strategy, **kwargs):
        # By now, images have been changed with the new ones.
        sizes = [len(outputs) for outputs in self._outputs]
        columns = [column.split(sizes) for column in self.take_out(strategy)]
        self._drawn = [list(part) for part in zip(*columns, strict=True)]

    def before_backward(self, strategy, **kwargs):
        refuse_no_tensor(strategy.mb_output, type(self).__name__)
        if not self._drawn:
            return
        for_outputs, *for_labels = self._drawn
        with minibatch_of(strategy, for_outputs):
            outputs = strategy.forward()
        kept = self._outputs[0]
        known = ~kept.isnan()  # a head may have outputs that were not there then
        distance = functional.mse_loss(outputs[tuple(map(slice, kept.shape))][known], kept[known])
        strategy.loss = strategy.loss + self.alpha * distance
        for part in for_labels:
            strategy.loss = strategy.loss + self.beta * loss_of(strategy, part)

    def after_update(self, strategy, **kwargs):
        self._offer(strategy)

    def after_training_iteration(self, strategy, **kwargs):
        self._offer(strategy)  # where gradients are accumulated, most minibatches end without an update

    def _offer(self, strategy) -> None:
        """Offers the minibatch that was just learned to the memory, with its outputs, if that has not been done."""
        if not self._new:
            return
        outputs = strategy.mb_output.detach()[: len(self._new[0])]
        for module in strategy.model.modules():
            if getattr(module, "masking", False):  # of classes not met yet: Avalanche's heads put a number for them
                outputs = outputs.masked_fill(outputs == module.mask_value, torch.nan)
        self.memory.add({str(place): column for place, column in enumerate(self._new)} | {"outputs": outputs})
        self._new = []
