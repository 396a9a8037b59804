"""How precisely is computed: sums in float32 at least, convolutions without TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def wide(numbers: Tensor) -> Tensor:
    """Returns floating-point numbers in float32 at least, others as they are.

    In bfloat16 a sum of equal terms stops growing at the 256th, and in float16 the square of 1e-4 is 0.
    """
    return numbers.float() if numbers.is_floating_point() and numbers.dtype.itemsize < 4 else numbers


@contextmanager
def without_tf32() -> Iterator[None]:
    """A GPU's convolutions have all of float32 within, not the 10 bits that PyTorch lets them have.

    With TF32 a gradient is off by about 1e-3, by another error in a batch than alone: then no layer's rule is found to
    hold, and the samples are measured one after another.
    """
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    ):
        yield
