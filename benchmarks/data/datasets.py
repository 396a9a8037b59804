"""A data set's name -> its images and labels, in memory or read from disk one at a time."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import torch
from avalanche.benchmarks.datasets import default_dataset_location
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional
from torch.utils.data import ConcatDataset, Subset
from torchvision.transforms.functional import rgb_to_grayscale

from engrams.benchmarks.data.images import ImageData, ImagesOnDisk
from engrams.benchmarks.data.kept import forget, kept
from engrams.benchmarks.data.names import (
    FEATURES,
    NPZ,
    OFFLINE,
    DataError,
    features_folders,
    found_features,
    is_own,
    path_of,
)
from engrams.benchmarks.data.own import check_repeatable, load_own
from engrams.benchmarks.data.sources import SOURCES, Source
from engrams.reports.errors import near_or


@kept(maxsize=8)
def load(name: str, from_disk: bool = False) -> ImageData:
    """Returns a data set by name, from memory if this process has loaded it before.

    One of :data:`NAMES` is looked for in the folder that the environment variable ENGRAMS_DATA names, then in
    Avalanche's default data folder, in each of its formats, then downloaded into the latter. ``features:NAME`` is what
    :mod:`engrams.benchmarks.data.features` made. One of one's own is named as :mod:`engrams.benchmarks.data.names`
    says, and is as :mod:`engrams.benchmarks.data.own` says.

    Args:
        name: of the data set.
        from_disk: leave the images on disk, to be read one at a time. (What torchvision itself holds in memory, as
            small as the files have it, stays there; so do the digits, which come with scikit-learn, and arrays of
            one's own.)

    Raises:
        DataError: no such name; the data are nowhere and cannot be downloaded; a file is truncated or corrupt; data of
            one's own are not as they have to be.
    """
    if is_own(name):
        return load_own(name, from_disk)
    if name.startswith(f"{FEATURES}:"):
        return load_own(f"{NPZ}:{features_file(name)}", from_disk)
    if name == "digits":
        return _digits()
    if name in SEQUENCES:
        return _one_after_another([load(part, from_disk) for part in SEQUENCES[name]])
    if name == SUPERCLASSES:
        return _by_superclass(load("cifar100", from_disk))
    if name not in SOURCES:
        hint = near_or(f"there are {', '.join(NAMES)}", name, NAMES)
        raise DataError(
            f"no data set is called {name!r}; {hint} (features of one: features:name; one's own: npz:path, "
            f"folder:path, parquet:path, module:function or file.py:function)"
        )
    source, root = _found_or_downloaded(name)
    with _named_if_broken(source, root):
        return ImageData(*_part(source, root, True, from_disk), *_part(source, root, False, from_disk))


def _part(source: Source, root: Path, train: bool, from_disk: bool) -> tuple[Tensor | ImagesOnDisk, Tensor]:
    """One split's images and labels."""
    data = source.open(root, train)
    y = source.labels(data).long()
    if not source.in_any_order:
        return ImagesOnDisk(data) if from_disk else source.images(data), y
    pixels = source.images(data)
    order = canonical_order(pixels, y)
    return ImagesOnDisk(data, order.tolist()) if from_disk else pixels[order], y[order]


def canonical_order(x: Tensor, y: Tensor) -> Tensor:
    """Returns an order of samples that depends on nothing but their pixels and labels, int64 [N].

    It is that of a hash of each sample: as good as shuffled, so that the first samples of a set are of all classes.

    Args:
        x: images, uint8 [N, channels, height, width].
        y: labels, [N].
    """
    hashes = [
        blake2b(pixels.tobytes(), digest_size=16, salt=label.to_bytes(8, "little")).digest()
        for pixels, label in zip(x.contiguous().numpy(), y.tolist(), strict=True)
    ]
    return torch.tensor(sorted(range(len(hashes)), key=hashes.__getitem__))


def check(name: str, from_disk: bool) -> None:
    """Says what is wrong with a data set's files, and downloads what is missing.

    Each is read, but no image of thousands is decoded, where that takes half a minute.

    Args:
        name: of the data set.
        from_disk: as for :func:`load`.

    Raises:
        DataError: as :func:`load`.
    """
    name = DERIVED.get(name, name)
    if is_own(name) and path_of(name) is None:
        forget(name)
        check_repeatable(name, load(name, from_disk=True))  # kept for class_count, which asks for it so
        return
    if name not in SOURCES or not SOURCES[name][0].in_any_order:
        load(name, from_disk)
        return
    source, root = _found_or_downloaded(name)
    with _named_if_broken(source, root):
        for train in (True, False):
            source.open(root, train)


def class_count(name: str) -> int:
    """Returns how many classes a data set has; no image is decoded for it.

    Raises:
        DataError: as :func:`load`.
    """
    name = DERIVED.get(name, name)  # of as many classes
    if name not in SOURCES or not SOURCES[name][0].in_any_order:
        return load(name, from_disk=True).classes
    source, root = _found_or_downloaded(name)
    with _named_if_broken(source, root):
        return int(source.labels(source.open(root, True)).max()) + 1


@lru_cache(maxsize=8)
def files_of(name: str) -> str:
    """Returns the files that a data set is read from and what is to be known of them, for the record.

    Empty for one's own, which a record tells apart by a fingerprint, and for what has only ever one format.
    """
    told = []
    for part in SEQUENCES.get(name, (DERIVED.get(name, name),)):
        if len(SOURCES.get(part, ())) < 2 or not (found := located(part)):
            continue
        source, root = found
        remark = source.remark(source.open(root, True), source.open(root, False)) if source.remark else ""
        told.append(", ".join(source.files) + (f" ({remark})" if remark else ""))
    return "; ".join(told)


@contextmanager
def _named_if_broken(source: Source, root: Path | None) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # whatever torchvision, NumPy, SciPy or PIL make of a broken file
        raise DataError(
            f"{source.title}: the files under {root} are corrupt ({type(error).__name__}: {error}); delete "
            f"{', '.join(source.files)} there and {source.again}"
        ) from error


def find(name: str) -> Path | None:
    """Returns the root folder that holds every file of a data set, or None; nothing is read or downloaded."""
    found = located(name)
    return found[1] if found else None


def located(name: str) -> tuple[Source, Path] | None:
    """Returns the first of a data set's formats whose files are all here, and their root folder, or None."""
    places = ((source, root) for source in SOURCES[name] for root in _roots(name))
    return next((place for place in places if all((place[1] / file).is_file() for file in place[0].files)), None)


def features_file(name: str) -> Path:
    """Returns the file of ``features:NAME``.

    Raises:
        DataError: they have not been made.
    """
    file = found_features(name)
    if file is None:
        made_of = re.fullmatch(rf"{FEATURES}:({'|'.join(NAMES)})-(.+)-(\d+)(?:-first(\d+))?", name)
        dataset, network, size, first = made_of.groups() if made_of else ("DATASET", "NAME", "PIXELS", None)
        command = f"engrams features {dataset} --network {network} --size {size}" + (
            f" --first {first}" if first else ""
        )
        raise DataError(f"{name} is not in {' or '.join(map(str, features_folders()))}; '{command}' makes it")
    return file


def _roots(name: str) -> list[Path]:
    roots = [Path(default_dataset_location(name.replace("-", "")))]  # Avalanche writes tinyimagenet
    if os.environ.get("ENGRAMS_DATA"):
        roots.insert(0, Path(os.environ["ENGRAMS_DATA"]).expanduser())
    return roots


def _found_or_downloaded(name: str) -> tuple[Source, Path]:
    if found := located(name):
        return found
    source, *others = SOURCES[name]
    root = _roots(name)[-1]
    assert source.download is not None
    try:
        if os.environ.get(OFFLINE):
            raise OSError("nothing is downloaded here")
        root.mkdir(parents=True, exist_ok=True)
        source.download(root)
    except Exception as error:  # no network shows as any of half a dozen exceptions
        looked_in = " and ".join(str(folder) for folder in _roots(name))
        files = ", or ".join(", ".join(one.files) for one in (source, *others))
        raise DataError(
            f"{source.title} is not here and could not be downloaded ({type(error).__name__}): looked in {looked_in} "
            f"for {files}; put them there or set ENGRAMS_DATA to the folder that has them"
        ) from error
    return source, root


def _digits() -> ImageData:
    """scikit-learn's 1,797 digits, 8x8, grey levels 0..16. They come without a test set: a fixed stratified fifth."""
    digits = load_digits()
    x = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.as_tensor(digits.target, dtype=torch.long)
    train, test = train_test_split(range(len(y)), test_size=0.2, stratify=y, random_state=0)
    return ImageData(x[train], y[train], x[test], y[test])


def _one_after_another(parts: Sequence[ImageData]) -> ImageData:
    """Several data sets as one: the classes of the second are numbered on from those of the first, and so on.

    The images are brought to one shape: grey (ITU-R 601 luma, as PIL and torchvision have it), and padded with black to
    the largest of them.
    """
    side = max(part.test_x[0].shape[-1] for part in parts)

    def to_one_shape(x: Tensor) -> Tensor:  # one image or all
        if x.shape[-3] == 3:
            x = rgb_to_grayscale(x)
        return functional.pad(x, [(side - x.shape[-1]) // 2] * 4)

    def joined(images: Sequence[Tensor | ImagesOnDisk]) -> Tensor | ImagesOnDisk:
        if all(isinstance(x, Tensor) for x in images):
            return torch.cat([to_one_shape(x) for x in images if isinstance(x, Tensor)])
        on_disk = [Subset(x.dataset, x.chosen) for x in images if isinstance(x, ImagesOnDisk)]
        return ImagesOnDisk(ConcatDataset(on_disk)).map(to_one_shape)

    first = [sum(part.classes for part in parts[:place]) for place in range(len(parts))]
    return ImageData(
        joined([part.train_x for part in parts]),
        torch.cat([part.train_y + offset for part, offset in zip(parts, first, strict=True)]),
        joined([part.test_x for part in parts]),
        torch.cat([part.test_y + offset for part, offset in zip(parts, first, strict=True)]),
    )


# fmt: off
COARSE = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)
# fmt: on
"""CIFAR-100's superclass of each of its classes, as its own files have them."""


def _by_superclass(data: ImageData) -> ImageData:
    """CIFAR-100, its classes numbered so that each twenty are one of every superclass, in the superclasses' order.

    A stream of twenty classes an experience is then one of the same twenty superclasses, shown by other classes.
    """
    met: Counter[int] = Counter()
    label = torch.empty(len(COARSE), dtype=torch.long)
    for fine, coarse in enumerate(COARSE):
        label[fine] = 20 * met[coarse] + coarse
        met[coarse] += 1
    return replace(data, train_y=label[data.train_y], test_y=label[data.test_y])


SEQUENCES: dict[str, tuple[str, ...]] = {
    "mnist-svhn": ("mnist", "svhn"),
    "svhn-mnist": ("svhn", "mnist"),
    "mnist-fashion": ("mnist", "fashion-mnist"),
    "mnist-usps": ("mnist", "usps"),
    "usps-mnist": ("usps", "mnist"),
}
"""Data sets of the same classes, to be learned one after another."""
SUPERCLASSES = "cifar100-superclasses"
DERIVED = {SUPERCLASSES: "cifar100"}
"""Other labels of the same images."""
NAMES = ("digits", *SOURCES, *SEQUENCES, *DERIVED)
