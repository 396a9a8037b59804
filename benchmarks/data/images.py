"""Images and labels in memory, or read from disk one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

GREY, COLOURED = ("1", "L"), ("P", "RGB")
"""PIL's modes of images without transparency, of at most 8 bits a channel."""
OTHER_COLOURS = ("CMYK", "YCbCr", "HSV", "LAB")
"""Those of coloured ones that are not made of red, green and blue."""
TRANSPARENCY = ("LA", "La", "PA", "RGBA", "RGBa")
"""Those of images whose pixels have an opacity each."""


class ImagesOnDisk(Dataset):
    """Images that the library's own dataset reads one at a time; nothing is kept.

    ``images[n]`` is what the n-th row of the tensor of all of them would be, here as there: uint8 or, after a
    :meth:`map`, what the mapping makes of it, [channels, height, width].
    """

    def __init__(
        self, dataset: Any, chosen: Sequence[int] | None = None, mapping: Callable[[Tensor], Tensor] | None = None
    ):
        """
        Args:
            dataset: torchvision's or Avalanche's, of (PIL image, label).
            chosen: which of its images, in which order; None for all.
            mapping: done to every image when it has been read.
        """
        self.dataset = dataset
        self.chosen = range(len(dataset)) if chosen is None else chosen
        self.mapping = mapping

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Tensor:
        image = pil_to_tensor(self.dataset[self.chosen[index]][0])
        return image if self.mapping is None else self.mapping(image)

    def take(self, indices: Tensor) -> ImagesOnDisk:
        """Returns the images at these places, in this order."""
        return ImagesOnDisk(self.dataset, [self.chosen[index] for index in indices.tolist()], self.mapping)

    def map(self, mapping: Callable[[Tensor], Tensor]) -> ImagesOnDisk:
        """Returns the same images with one more thing done to each."""
        before = self.mapping
        return ImagesOnDisk(
            self.dataset, self.chosen, mapping if before is None else lambda image: mapping(before(image))
        )


class PreparedLater(Dataset):
    """Images in memory as their files have them: what goes into the network is made of those that are asked for.

    ``images[n]``, or ``images[indices]``, is what a tensor of all prepared images would have there, to the bit, at a
    quarter of its memory.
    """

    def __init__(self, pixels: Tensor, prepare: Callable[[Tensor], Tensor]):
        """
        Args:
            pixels: uint8 [N, channels, height, width].
            prepare: made of one image, or of several; floats.
        """
        self.pixels = pixels
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        return self.prepare(self.pixels[index])

    def take(self, indices: Tensor) -> PreparedLater:
        """Returns the images at these places, in this order."""
        return PreparedLater(self.pixels[indices], self.prepare)

    def to(self, device: torch.device) -> PreparedLater:
        """Returns the same images on a device."""
        return PreparedLater(self.pixels.to(device), self.prepare)

    @staticmethod
    def joined(several: Sequence[PreparedLater]) -> PreparedLater:
        """Returns those of several, which are prepared alike, one after another."""
        return PreparedLater(torch.cat([one.pixels for one in several]), several[0].prepare)


@dataclass(frozen=True)
class ImageData:
    """Images [N, channels, height, width] or vectors [N, values], and labels int64 in [0, classes), [N].

    Images are as their files have them, uint8 in [0, 255], or already float32 in [0, 1]; :func:`as_float` makes the
    second of the first. A tensor, or read from disk one at a time, or prepared by the minibatch. Vectors are float32 of
    any range, a tensor.
    """

    train_x: Tensor | ImagesOnDisk | PreparedLater
    train_y: Tensor
    test_x: Tensor | ImagesOnDisk | PreparedLater
    test_y: Tensor
    standardise: bool = False
    """Whether a stream made of them has every value standardised by the training data of its first experience."""
    black: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Of images: one number, or one a channel, [channels, 1, 1]."""

    @property
    def classes(self) -> int:
        return int(self.train_y.max()) + 1

    @property
    def vectors(self) -> bool:
        return self.train_x[0].ndim == 1


def as_float(x: Tensor) -> Tensor:
    """Returns grey levels 0..255 as float32 in [0, 1]; float32 is left as it is."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def upright(image: Image.Image) -> Image.Image:
    """Returns the image turned as its EXIF orientation says: a camera held upright writes the picture on its side."""
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns the width and height that the image has when it is upright; nothing is decoded."""
    quarter_turn = _orientation(image) in (5, 6, 7, 8)
    return image.size[::-1] if quarter_turn else image.size


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info:  # asked all the same, PIL would decode a PNG; a TIFF it turns by itself
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever PIL makes of broken EXIF; the pixels may be whole
        return 1


def problem_of_colours(image: Image.Image) -> str:
    """Returns why an image cannot be converted to grey levels or RGB unseen, or nothing if it can.

    What is transparent may have any colour below, mostly black, and CMYK becomes another RGB with every ink. No image
    is decoded but one that may be transparent: many programs save opaque ones so.
    """
    if image.mode in TRANSPARENCY or "transparency" in image.info:
        if image.convert("RGBA").getextrema()[3] == (255, 255):
            return ""
        what = "transparency"
    elif image.mode in OTHER_COLOURS:
        what = "other colours than RGB"
    elif image.mode not in GREY + COLOURED:
        what = "more than 8 bits a channel"
    else:
        return ""
    return f"has {what} (PIL's mode {image.mode}); convert all to RGB or grey, with 8 bits a channel"


def all_decoded(data: Any) -> Tensor:
    """Returns all images of a library's dataset of (PIL image, label), uint8 [N, channels, height, width].

    Tiny ImageNet's 100,000 training images are 1.2 GB.
    """
    images = ImagesOnDisk(data)
    decoded = torch.empty((len(images), *images[0].shape), dtype=torch.uint8)
    for place in range(len(images)):
        decoded[place] = images[place]
    return decoded
