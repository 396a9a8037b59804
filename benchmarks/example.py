"""Engrams from Python: two ways of learning ten digits two at a time, as a table, as matrices and as a picture.

Needs no download and less than a minute::

    python -m engrams.benchmarks.example example
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

from engrams.benchmarks import run
from engrams.reports import matrices

PROTOCOL = "split-digits/class"
STRATEGIES = ["naive", "replay"]


def main(out: Path) -> None:
    """Runs everything, prints what came out and leaves two pictures in the folder ``out``."""
    # Runs of a protocol by strategies and seeds. What the folder has already is not run again.
    records = run(PROTOCOL, STRATEGIES, seeds=3, out=out)

    # One row a run; from here on it is pandas. Accuracies are fractions.
    frame = records.frame()
    print((100 * frame.groupby("strategy")[["ACC", "forgetting", "learning_accuracy"]].mean()).round(1))

    # R[seed, i, j] is the accuracy on experience j after training on experience i; from here on it is numpy.
    naive, replay = (records.matrices(PROTOCOL, strategy) for strategy in STRATEGIES)
    print("\nThe first two digits, after each experience (%):")
    for strategy, found in (("naive", naive), ("replay", replay)):
        print(f"{strategy:>8}", (100 * found[:, :, 0].mean(axis=0)).round(1))

    # The accuracy matrices side by side, as 'engrams matrix' draws them ...
    matrices.figure(matrices.of(records)).savefig(out / "matrices.png")

    # ... and a plot of one's own: how much of what was met so far is known after each experience.
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="experiences learned", ylabel="accuracy on all so far (%)", ylim=(0, 103))
    for strategy, found in (("naive", naive), ("replay", replay)):
        so_far = [100 * found[:, i, : i + 1].mean() for i in range(found.shape[1])]
        axes.plot(range(1, len(so_far) + 1), so_far, marker="o", label=strategy)
    axes.legend()
    figure.savefig(out / "so-far.png")


if __name__ == "__main__":  # runs go on in processes of their own, which read this file too
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
