"""What the tests share: small data sets in the real formats, and protocols that take a second."""

import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

warnings.filterwarnings("ignore", message="no QP solver found")
torch.set_num_threads(1)  # small networks; and as the suite runs them, so that results are the same to the bit
# Command lines that the tests start have no terminal, no W&B account and no colour.
os.environ.pop("WANDB_API_KEY", None)
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "200"

RAW = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture
def idx_files(tmp_path):
    """Write a small data set in MNIST's IDX format; returns its root folder."""

    def make(name="MNIST", train=60, test=30) -> Path:
        rng = np.random.default_rng(0)
        folder = tmp_path / name / "raw"
        folder.mkdir(parents=True)
        for stem, count in zip(RAW, (train, train, test, test), strict=True):
            if "images" in stem:
                header = struct.pack(">IIII", 0x00000803, count, 28, 28)
                body = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            else:
                header = struct.pack(">II", 0x00000801, count)
                body = (np.arange(count) % 10).astype(np.uint8)
            (folder / stem).write_bytes(header + body.tobytes())
        return tmp_path

    return make


@pytest.fixture
def fresh_data(monkeypatch, tmp_path):
    """No data set is loaded, none is in Avalanche's folder, and none can be downloaded."""
    from benchmarks import datasets

    datasets.load.cache_clear()
    monkeypatch.setattr(datasets, "default_dataset_location", lambda name: str(tmp_path / "avalanche" / name))
    monkeypatch.delenv("ENGRAMS_DATA", raising=False)

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    yield monkeypatch
    datasets.load.cache_clear()
