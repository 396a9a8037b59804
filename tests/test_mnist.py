"""The real MNIST, where it is: set ENGRAMS_DATA, or have it in Avalanche's default folder."""

from dataclasses import replace

import pytest
import torch

from engrams.benchmarks.data import datasets
from engrams.benchmarks.data.images import as_float
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import run_of
from engrams.benchmarks.protocols import registry as protocol

pytestmark = pytest.mark.skipif(datasets.find("mnist") is None, reason="MNIST is not here; nothing is downloaded")


def test_the_real_files():
    data = datasets.load("mnist")
    assert data.train_x.shape == (60000, 1, 28, 28)
    assert data.test_x.shape == (10000, 1, 28, 28)
    assert data.train_y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # torchvision's published mean and standard deviation of the training images
    train_x = as_float(data.train_x)
    assert train_x.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert torch.std(train_x).item() == pytest.approx(0.3081, abs=1e-4)


def test_ewc_keeps_what_naive_forgets(tmp_path):
    """Split MNIST, task-incremental, three of five experiences, one epoch each in place of four."""
    entry = protocol.get("split-mnist/task")
    short = entry.model_copy(update={"training": entry.training.model_copy(update={"epochs": 1})})
    acc = {}
    for strategy in ("naive", "ewc"):
        run = replace(run_of(short, strategy, 0), first=3)
        acc[strategy] = execute(run, tmp_path, "cpu", "disabled", lambda epochs: None).acc
    assert acc["ewc"] > 0.97
    assert acc["ewc"] > acc["naive"]
