"""A classifier trained on real data: what does a generated image show?"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional

from engrams.benchmarks.data import datasets
from engrams.benchmarks.data.kept import kept
from engrams.benchmarks.data.names import short
from engrams.benchmarks.data.streams import prepared
from engrams.benchmarks.protocols.schema import CNN, Images
from engrams.benchmarks.revisions import CLASSIFIER_REVISION
from engrams.benchmarks.training.networks import ConvolutionalNetwork

NETWORK = CNN(kind="cnn", convolutions=(16, "M", 32, "M"), hidden_sizes=(128,))
LEARNING_RATE = 1e-3
BATCH = 128
IMAGES_SEEN = 200_000
"""In training; see :func:`train_classifier`."""
SEED = 0
AT_ONCE = 1000


@dataclass(frozen=True)
class RealClassifier:
    """Trained on all real training images of a data set, under its own labels whatever the scenario."""

    network: nn.Module
    accuracy: float
    """On the real test images, in [0, 1]."""
    classes: int

    def classify(self, x: Tensor) -> Tensor:
        """Images as the stream has them, [N, *shape] -> classes, int64 [N]."""
        return classes_of(self.network, x)


@kept(maxsize=1)
def real_classifier(dataset: str, images: Images, folder: Path) -> RealClassifier:
    """Returns the classifier of a data set, trained when it is first asked for and then kept in a folder.

    What is kept is found again by its content: the images, what is done to them, the network and its training.

    Args:
        dataset: its name.
        images: what is done to them before they are learned.
        folder: where it is kept.

    Raises:
        DataError: as :func:`engrams.benchmarks.data.datasets.load`.
    """
    name = re.sub(r"[^\w.]+", "-", short(dataset))  # one's own has a colon
    path = folder / f"{name}-{_digest(dataset, images)}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = prepared(dataset, images, False)
    assert isinstance(data.train_x, Tensor)
    assert isinstance(data.test_x, Tensor)
    with FileLock(path.with_suffix(".lock")), torch.random.fork_rng():
        kept = _read(path)
        if kept is None:
            network = train_classifier(data.train_x, data.train_y, data.classes, IMAGES_SEEN)
            accuracy = (classes_of(network, data.test_x) == data.test_y).float().mean().item()
            torch.save({"network": network.state_dict(), "accuracy": accuracy}, path)
        else:
            network, accuracy = ConvolutionalNetwork(NETWORK, data.train_x.shape[1:], data.classes), kept["accuracy"]
            network.load_state_dict(kept["network"])
    return RealClassifier(network.eval().requires_grad_(False), accuracy, data.classes)


def train_classifier(x: Tensor, y: Tensor, classes: int, images_seen: int) -> nn.Module:
    """Trains a classifier of images, real or not, and returns it; takes no random number from anyone else.

    Args:
        x: images, [N, channels, height, width].
        y: their classes, [N].
        classes: how many there are.
        images_seen: in training, in whole epochs, at least 3.
    """
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = ConvolutionalNetwork(NETWORK, x.shape[1:], classes).to(x.device)
        optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)
        for _ in range(max(3, round(images_seen / len(x)))):
            for indices in torch.randperm(len(x)).to(x.device).split(BATCH):
                optimizer.zero_grad()
                functional.cross_entropy(network(x[indices]), y[indices]).backward()
                optimizer.step()
    return network


@torch.no_grad()
def classes_of(network: nn.Module, x: Tensor) -> Tensor:
    """Returns a classifier's answers, int64 [N], to images [N, *shape]."""
    return torch.cat([network(part).argmax(dim=1) for part in x.split(AT_ONCE)])


def _digest(dataset: str, images: Images) -> str:
    raw = datasets.load(dataset)
    settings = [
        images.model_dump(mode="json"),
        NETWORK.model_dump(mode="json"),
        LEARNING_RATE,
        BATCH,
        IMAGES_SEEN,
        SEED,
        CLASSIFIER_REVISION,
    ]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for column in (raw.train_x, raw.train_y, raw.test_x, raw.test_y):
        assert isinstance(column, Tensor)
        digest.update(column.numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> dict[str, Any] | None:
    """What is kept, or None if nothing is, or it was cut short."""
    try:
        return torch.load(path, weights_only=True)
    except Exception:  # there is no file, or it is whatever pickle and zip make of half of one: it is made anew
        return None
