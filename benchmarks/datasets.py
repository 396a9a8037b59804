"""A data set's name -> its images and labels, in memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from avalanche.benchmarks.datasets import default_dataset_location
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision import datasets as torchvision_datasets
from torchvision.datasets.utils import check_integrity


class DataError(Exception):
    """A data set is missing or broken; the message is one line that says which file and what to do."""


@dataclass(frozen=True)
class ImageData:
    """Images float32 in [0, 1], [N, channels, height, width]; labels int64 in [0, classes), [N]."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def classes(self) -> int:
        return int(self.train_y.max()) + 1


@dataclass(frozen=True)
class Source:
    """Where torchvision keeps a data set below its root folder, and how it is read."""

    title: str
    files: tuple[str, ...]
    read: Callable[[Path, bool], tuple[Tensor, Tensor]]
    """(root, train) -> images uint8 [N, channels, height, width] and labels; raises if a file is not as it should."""
    download: Callable[[Path], object]


@lru_cache(maxsize=2)
def load(name: str) -> ImageData:
    """Load a data set by name (see :data:`NAMES`), from memory if this process has loaded it before.

    Looked for in the folder that the environment variable ENGRAMS_DATA names, then in Avalanche's default data folder,
    then downloaded into the latter.

    Raises:
        DataError: no such name; the data are nowhere and cannot be downloaded; a file is truncated or corrupt.
    """
    if name == "digits":
        return _digits()
    if name not in SOURCES:
        raise DataError(f"no data set is called {name!r}; there are {', '.join(NAMES)}")
    source = SOURCES[name]
    root = find(name)
    if root is None:
        root = _downloaded(name, source)
    try:
        (train_x, train_y), (test_x, test_y) = source.read(root, True), source.read(root, False)
    except DataError:
        raise
    except Exception as error:  # whatever torchvision, NumPy or SciPy make of a broken file
        raise DataError(
            f"{source.title}: the files under {root} are corrupt ({type(error).__name__}: {error}); delete "
            f"{', '.join(source.files)} there and let them be downloaded again"
        ) from error
    return ImageData(train_x.float() / 255, train_y.long(), test_x.float() / 255, test_y.long())


def find(name: str) -> Path | None:
    """The root folder that holds every file of a data set, or None; nothing is read or downloaded."""
    files = SOURCES[name].files
    return next((root for root in _roots(name) if all((root / file).is_file() for file in files)), None)


def _roots(name: str) -> list[Path]:
    roots = [Path(default_dataset_location(name))]
    if os.environ.get("ENGRAMS_DATA"):
        roots.insert(0, Path(os.environ["ENGRAMS_DATA"]).expanduser())
    return roots


def _downloaded(name: str, source: Source) -> Path:
    root = _roots(name)[-1]
    try:
        root.mkdir(parents=True, exist_ok=True)
        source.download(root)
    except Exception as error:  # no network shows as any of half a dozen exceptions
        looked_in = " and ".join(str(folder) for folder in _roots(name))
        raise DataError(
            f"{source.title} is not here and could not be downloaded ({type(error).__name__}): looked in {looked_in} "
            f"for {', '.join(source.files)}; put them there or set ENGRAMS_DATA to the folder that has them"
        ) from error
    return root


def _digits() -> ImageData:
    """scikit-learn's 1,797 digits, 8x8, grey levels 0..16. They come without a test set: a fixed stratified fifth."""
    digits = load_digits()
    x = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.as_tensor(digits.target, dtype=torch.long)
    train, test = train_test_split(range(len(y)), test_size=0.2, stratify=y, random_state=0)
    return ImageData(x[train], y[train], x[test], y[test])


def _idx_source(title: str, dataset: type[torchvision_datasets.MNIST]) -> Source:
    """MNIST and its likes: IDX files, whose header says how long they have to be."""
    stems = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    files = tuple(f"{dataset.__name__}/raw/{stem}" for stem in stems)

    def read(root: Path, train: bool) -> tuple[Tensor, Tensor]:
        for file in files:
            _check_idx(title, root / file)
        data = dataset(str(root), train=train, download=False)
        if len(data.data) != len(data.targets) or not 0 <= data.targets.min() <= data.targets.max() < 10:
            labels = root / files[1 if train else 3]
            raise DataError(f"{title}: {labels} does not fit the images beside it; delete both and download them again")
        return data.data.unsqueeze(1), data.targets

    return Source(title, files, read, lambda root: dataset(str(root), download=True))


def _check_idx(title: str, path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(4)
        dimensions = header[3] if len(header) == 4 and header[:3] == b"\0\0\x08" else 0
        sizes = file.read(4 * dimensions)
    expected = 4 + 4 * dimensions
    if dimensions and len(sizes) == 4 * dimensions:
        count = 1
        for size in struct.unpack(f">{dimensions}I", sizes):
            count *= size
        expected += count
    if not dimensions or path.stat().st_size != expected:
        raise DataError(
            f"{title}: {path} is truncated or corrupt ({path.stat().st_size} bytes"
            + (f", its header promises {expected}" if dimensions else ", and no IDX header")
            + "); delete it and let it be downloaded again"
        )


def _check_md5(title: str, path: Path, md5: str) -> None:
    if not check_integrity(str(path), md5):
        raise DataError(f"{title}: {path} is truncated or corrupt; delete it and let it be downloaded again")


def _svhn_source() -> Source:
    svhn = torchvision_datasets.SVHN

    def read(root: Path, train: bool) -> tuple[Tensor, Tensor]:
        split = "train" if train else "test"
        _, file, md5 = svhn.split_list[split]
        _check_md5("SVHN", root / file, md5)
        data = svhn(str(root), split=split, download=False)
        return torch.from_numpy(data.data), torch.from_numpy(data.labels)

    def download(root: Path) -> None:
        for split in ("train", "test"):
            svhn(str(root), split=split, download=True)

    return Source("SVHN", ("train_32x32.mat", "test_32x32.mat"), read, download)


def _cifar10_source() -> Source:
    cifar10 = torchvision_datasets.CIFAR10
    batches = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")

    def read(root: Path, train: bool) -> tuple[Tensor, Tensor]:
        for file, md5 in cifar10.train_list if train else cifar10.test_list:
            _check_md5("CIFAR-10", root / cifar10.base_folder / file, md5)
        data = cifar10(str(root), train=train, download=False)
        return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)

    return Source(
        "CIFAR-10",
        tuple(f"{cifar10.base_folder}/{batch}" for batch in batches),
        read,
        lambda root: cifar10(str(root), download=True),
    )


SOURCES: dict[str, Source] = {
    "mnist": _idx_source("MNIST", torchvision_datasets.MNIST),
    "fashion-mnist": _idx_source("Fashion-MNIST", torchvision_datasets.FashionMNIST),
    "svhn": _svhn_source(),
    "cifar10": _cifar10_source(),
}
NAMES = ("digits", *SOURCES)
