"""The features of a data set's images in a frozen, pre-trained network: made once, then read as any data set.

``engrams features cifar100 --network efficientnet-lite0 --size 128`` writes the file
``features/cifar100-efficientnet-lite0-128.npz`` below the data folder; a protocol reads it as
``dataset = "features:cifar100-efficientnet-lite0-128"``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor

from engrams.benchmarks.data import datasets
from engrams.benchmarks.data.images import ImageData
from engrams.benchmarks.data.names import DataError, features_folders, found_features
from engrams.benchmarks.data.pretrained import Pretrained, pretrained
from engrams.reports.files import replace_file, replacing

IMAGES_IN_A_PART = 1000
"""Kept on disk as one, so that this much is done again at most."""
IMAGES_AT_ONCE = 50
"""Through the network. Fixed, as the parts are: the last bits of a feature may depend on it."""


def name_of(dataset: str, network: str, size: int, first: int | None) -> str:
    """Returns what the features are called after ``features:``."""
    parts = [dataset, network.replace(":", "-"), str(size)]
    return "-".join(parts + ([f"first{first}"] if first is not None else []))


def extract(
    dataset: str,
    network: str,
    size: int,
    weights: Path | None,
    first: int | None,
    advanced: Callable[[int, int], None],
) -> Path:
    """Makes the features of a data set, or goes on where it was stopped; what is there already is left as it is.

    Args:
        dataset: a name of :data:`engrams.benchmarks.data.datasets.NAMES`.
        network: as for :func:`engrams.benchmarks.data.pretrained.pretrained`.
        size: to which the sides of the images are enlarged.
        weights: as for ``pretrained``.
        first: how many training and how many test images to take, the first ones; None for all.
        advanced: told (images done, images in all) again and again.

    Returns:
        The file: arrays ``train_images`` float32 [N, values], ``train_labels`` int64 [N], ``test_images``,
        ``test_labels``, and ``about``, a text in JSON that says what they were made of.

    Raises:
        DataError: the data, the network or its weights are missing or broken; the features that are there were made
            of something else; another process is making them; or they cannot be written.
    """
    model = pretrained(network, weights)
    data = _first(datasets.load(dataset), first)
    if data.vectors:
        raise DataError(f"{dataset} has vectors, which a network that sees images cannot take")
    about = {"dataset": dataset, "network": network, "size": size, "fingerprint": _fingerprint(data, model, size)}
    name = name_of(dataset, network, size, first)
    file = found_features(name)
    if file is not None:
        _check_made_of(file, about)
        return file
    folder = _writable_folder()
    parts = folder / f"{name}.parts"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock", timeout=0):
            return _made(folder / f"{name}.npz", parts, data, model, size, about, advanced)
    except Timeout as error:
        raise DataError(f"{folder / name}: another process is making these features; wait for it") from error
    except OSError as error:
        raise DataError(
            f"the features cannot be written to {folder}: {error.strerror or error}; what is done is kept, run the "
            f"same command again"
        ) from error


def _made(
    file: Path,
    parts: Path,
    data: ImageData,
    model: Pretrained,
    size: int,
    about: dict[str, object],
    advanced: Callable[[int, int], None],
) -> Path:
    said = parts / "about.json"
    if said.exists() and json.loads(said.read_text(encoding="utf-8")) != about:
        shutil.rmtree(parts)  # what was begun was of other images or weights
        parts.mkdir()
    replace_file(said, json.dumps(about))
    total, done = len(data.train_y) + len(data.test_y), 0
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
    for split, images, labels in (("train", data.train_x, data.train_y), ("test", data.test_x, data.test_y)):
        assert isinstance(images, Tensor)  # they were loaded so
        found = []
        for place, part in _in_parts(images):
            path = parts / f"{split}-{place:06d}.npy"
            if not path.exists():
                batches = [model.features(batch, size).numpy() for batch in part.split(IMAGES_AT_ONCE)]
                with replacing(path) as opened:
                    np.save(opened, np.concatenate(batches))
            found.append(np.load(path, allow_pickle=False))
            done += len(found[-1])
            advanced(done, total)
        arrays |= {f"{split}_images": np.concatenate(found), f"{split}_labels": labels.numpy()}
    with replacing(file) as opened:
        np.savez(opened, **arrays)
    shutil.rmtree(parts)
    return file


def _in_parts(images: Tensor) -> Iterator[tuple[int, Tensor]]:
    for place in range(0, len(images), IMAGES_IN_A_PART):
        yield place, images[place : place + IMAGES_IN_A_PART]


def _first(data: ImageData, first: int | None) -> ImageData:
    if first is None:
        return data
    assert isinstance(data.train_x, Tensor)
    assert isinstance(data.test_x, Tensor)
    return ImageData(data.train_x[:first], data.train_y[:first], data.test_x[:first], data.test_y[:first])


def _fingerprint(data: ImageData, model: Pretrained, size: int) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of images, labels, weights and preprocessing."""
    digest = sha256(json.dumps([size, model.mean, model.std, "bicubic"]).encode())
    for tensor in (data.train_x, data.train_y, data.test_x, data.test_y):
        assert isinstance(tensor, Tensor)
        digest.update(tensor.contiguous().numpy().data)
    with model.weights.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]


def _check_made_of(file: Path, about: dict[str, object]) -> None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            made_of = json.loads(str(arrays["about"])) if "about" in arrays else {}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{file} cannot be read ({error}); delete it and make it again") from error
    if made_of != about:
        raise DataError(
            f"{file} was made of other images, weights or settings than these (its fingerprint is "
            f"{made_of.get('fingerprint')}, theirs {about['fingerprint']}); move it away to make these"
        )


def _writable_folder() -> Path:
    """The first of the folders that can be written to."""
    problem: OSError | None = None
    for folder in features_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = error
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise DataError(f"no folder for features can be written: {problem or features_folders()}")
