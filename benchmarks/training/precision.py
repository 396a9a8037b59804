"""Training in bfloat16 where that is safe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from avalanche.models import MultiTaskModule
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn


def train_in_bfloat16(strategy: SupervisedTemplate) -> None:
    """Lets a strategy's forward pass of a training minibatch, and so its backward pass, go through PyTorch's autocast.

    Matrix products and convolutions are then of bfloat16 (8 bits of precision, the range of float32); weights, the
    loss, the optimiser and all evaluation stay float32. A second pass over what our own strategies replay goes the same
    way. What a strategy computes besides (a penalty, an importance, a generator, the passes that Avalanche's ER-ACE,
    MIR, GEM, A-GEM and LwF make of the model by themselves) stays float32 too.

    Args:
        strategy: Avalanche's, not trained yet.
    """
    forward = strategy.forward

    def in_bfloat16(self: SupervisedTemplate) -> Tensor:
        if not self.is_training:
            return forward()
        with torch.autocast(self.device.type, torch.bfloat16), _heads_answer_in_float32(self.model):
            return forward().float()

    strategy.forward = MethodType(in_bfloat16, strategy)


@contextmanager
def _heads_answer_in_float32(model: nn.Module) -> Iterator[None]:
    """Avalanche puts the answers of the heads of a minibatch into a tensor of float32, which takes no others."""
    if not isinstance(model, MultiTaskModule):
        yield
        return
    of_one_task = model.forward_single_task
    # In its own dictionary: what is set on Avalanche's MultiTaskDecorator is set on the network within.
    vars(model)["forward_single_task"] = lambda x, task_label: of_one_task(x, task_label).float()
    try:
        yield
    finally:
        del vars(model)["forward_single_task"]
