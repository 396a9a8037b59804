"""Random changes to training images, a whole minibatch at once, on the device they lie on."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from engrams.benchmarks.data.loading import new_sample_count
from engrams.benchmarks.protocols.schema import Augmented
from engrams.strategies.kept import KeepsNothing, KeepsNothingWithin, State


class Augmentation(SupervisedPlugin):
    """Crops and mirrors the images of a training minibatch, [N, channels, height, width], each at random.

    What is measured after training (importances, accuracies) sees the images as they are, and a buffer keeps them so:
    what it replays is changed anew in every step, if it is to be. Its images stand behind the new ones in a minibatch.
    """

    def __init__(
        self,
        flips: bool = False,
        padding: int = 0,
        augmented: Augmented = "both",
        black: Tensor | float = 0.0,
        seed: int = 0,
        iterations: int = 1,
    ):
        """
        Args:
            flips: mirror an image with probability 1/2.
            padding: pad an image on all sides by so many pixels of black, and cut one of its size out of that at
                random; 0 leaves it.
            augmented: ``stream``: the new images only; ``buffer``: those that are replayed only; or ``both``.
            black: its value as the network sees it, one number or one a channel, [channels, 1, 1].
            seed: of what is drawn; a generator of its own, as the order of the samples has.
            iterations: steps in a row on every minibatch.
        """
        super().__init__()
        self.flips = flips
        self.padding = padding
        self.augmented = augmented
        self.black = black
        self.new = NewSamples(iterations)
        self._random = torch.Generator().manual_seed(seed)

    def state_dict(self) -> State:
        """Returns the state of the source of random numbers."""
        return {"random": self._random.get_state()}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self._random.set_state(state["random"])

    state_dict_within, load_state_dict_within = state_dict, load_state_dict

    def before_training_iteration(self, strategy, **kwargs):
        parts = {"stream": slice(self.new.count), "buffer": slice(self.new.count, None), "both": slice(None)}
        chosen = parts[self.augmented]
        x = strategy.mb_x
        changed = self._changed(x[chosen])
        if self.augmented != "both":
            changed, whole = x.clone(), changed
            changed[chosen] = whole
        strategy.mbatch[0] = changed

    def _changed(self, x: Tensor) -> Tensor:
        if self.padding:
            offsets = torch.randint(2 * self.padding + 1, (2, len(x)), generator=self._random)
            x = cropped(x, self.padding, offsets.to(x.device), self.black)
        if self.flips:
            mirrored = torch.rand(len(x), generator=self._random) < 0.5
            x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)
        return x


class NewSamples(KeepsNothing, KeepsNothingWithin, SupervisedPlugin):
    """Counts the new samples of a minibatch; it has to be the first of the plugins, before a buffer adds its own."""

    count: int | None = None

    def __init__(self, iterations: int):
        """
        Args:
            iterations: steps in a row on every minibatch.
        """
        super().__init__()
        self.iterations = iterations

    def before_training_iteration(self, strategy: Any, **kwargs):
        self.count = new_sample_count(strategy, self.iterations)


def cropped(x: Tensor, padding: int, offsets: Tensor, black: Tensor | float) -> Tensor:
    """Returns a window of each padded image, of the image's own size.

    Args:
        x: images, [N, channels, height, width].
        padding: pixels on every side.
        offsets: the window's upper and left end in each padded image, integers in [0, 2 padding], [2, N].
        black: what is padded with, one number or one a channel, [channels, 1, 1].
    """
    count, channels, height, width = x.shape
    padded = x.new_empty(count, channels, height + 2 * padding, width + 2 * padding)
    padded[:] = black.to(x) if isinstance(black, Tensor) else black
    padded[:, :, padding : padding + height, padding : padding + width] = x
    rows = offsets[0][:, None] + torch.arange(height, device=x.device)
    columns = offsets[1][:, None] + torch.arange(width, device=x.device)
    images = torch.arange(count, device=x.device)[:, None, None]
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
