"""What a generator's images give away of those that it was trained on, as a record has it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Nearness(BaseModel):
    """How near generated images lie to training images, in one space; distances are Euclidean, of one class.

    ``to_training``, ``to_test``: medians of the distances of generated images to the nearest training and to the
    nearest test image. Of training images there are more, so that the nearest one is nearer: what new real images would
    have is ``test_to_training``, the median of test images' distances to the nearest training image.

    ``closer``: the share of generated images that are closer to a training image than any test image (of the class) is.

    ``copying``: C_T of Meehan, Chaudhuri & Dasgupta 2020 (arXiv 2004.05675), and ``copying_interval`` its 95%
    interval: far below 0 of copies, 0 of new real images, far above 0 of images that are unlike any. Both None where no
    class has enough images.
    """

    model_config = ConfigDict(extra="forbid")

    to_training: float
    to_test: float
    test_to_training: float
    closer: float
    copying: float | None
    copying_interval: tuple[float, float] | None


class Privacy(BaseModel):
    """Of ``images`` generated images at the end of the stream: in pixels, 0 black and 1 white, and in the features of a
    classifier of real images."""

    model_config = ConfigDict(extra="forbid")

    images: int
    pixels: Nearness
    features: Nearness
