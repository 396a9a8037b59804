"""Draws every picture: ``python -m benchmarks.gallery OUT RECORDS``."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from engrams.benchmarks.gallery import generators, huszar, importances, matrix, rosenbrock
from engrams.benchmarks.gallery.drawing import write_animation, write_picture


def drawings(records: Path) -> dict[str, Callable[[Path], None]]:
    """Returns name of the file -> what writes it."""
    return {
        "ewc-rosenbrock.png": lambda path: write_picture(rosenbrock.picture(), path),
        "ewc-rosenbrock.gif": lambda path: write_animation(rosenbrock.animation(), path, 90),
        "ewc-huszar.png": lambda path: write_picture(huszar.picture(), path),
        "importances.png": lambda path: write_picture(importances.picture(), path),
        "matrix.gif": lambda path: write_animation(matrix.animation(records), path, 1200),
        "mergan.png": lambda path: write_picture(generators.picture(), path),
    }


def main(out: Path, records: Path) -> None:
    """Draws them one after another, and says which and for how long."""
    out.mkdir(parents=True, exist_ok=True)
    for name, write in drawings(records).items():
        started = time.perf_counter()
        print(f"{out / name} ...", end=" ", flush=True)
        write(out / name)
        print(f"{time.perf_counter() - started:.0f} s, {(out / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    torch.set_num_threads(1)  # small networks
    main(Path(sys.argv[1]), Path(sys.argv[2]))
