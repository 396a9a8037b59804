"""Random changes to training images, minibatch by minibatch, on the device they lie on."""

from __future__ import annotations

import torch
from avalanche.training.plugins import SupervisedPlugin

from engrams.strategies.kept import State


class HorizontalFlips(SupervisedPlugin):
    """Mirrors every image of a training minibatch, [N, channels, height, width], with probability 1/2.

    What is measured after training (importances, accuracies) sees the images as they are.
    """

    def __init__(self, seed: int = 0):
        """
        Args:
            seed: of which images are mirrored; a generator of its own, as the order of the samples has.
        """
        super().__init__()
        self._coins = torch.Generator().manual_seed(seed)

    def state_dict(self) -> State:
        """Returns the state of the source of random numbers."""
        return {"coins": self._coins.get_state()}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self._coins.set_state(state["coins"])

    def before_training_iteration(self, strategy, **kwargs):
        x = strategy.mb_x
        mirrored = torch.rand(len(x), generator=self._coins) < 0.5
        strategy.mbatch[0] = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)
