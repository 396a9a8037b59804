"""The formats in which the known data sets lie on disk: which files each has, and how they are read and checked."""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks.datasets import TinyImagenet
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets as torchvision_datasets
from torchvision.datasets.folder import default_loader
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.functional import to_pil_image

from engrams.benchmarks.data.images import ImageData, all_decoded
from engrams.benchmarks.data.names import DataError
from engrams.benchmarks.data.own import load_own
from engrams.benchmarks.data.parquet import ParquetImages


@dataclass(frozen=True)
class Source:
    """One format of a data set: what files it has below its root folder, and how they are read."""

    title: str
    files: tuple[str, ...]
    open: Callable[[Path, bool], Any]
    """(root, train) -> the library's dataset of (PIL image, label); raises if a file is not as it should be."""
    images: Callable[[Any], Tensor]
    """That dataset -> all its images, uint8 [N, channels, height, width]."""
    labels: Callable[[Any], Tensor]
    """That dataset -> all its labels, integers, [N]."""
    download: Callable[[Path], object] | None = None
    """Into a root folder; None where there is nowhere to download these files from."""
    in_any_order: bool = False
    """Whether files of another format have the samples in another order, so that they are put into one that depends on
    labels and pixels alone."""
    remark: Callable[[Any, Any], str] | None = None
    """The datasets of both splits -> what is to be known of these files, for the record."""

    @property
    def again(self) -> str:
        """Returns what to do where the files are broken and have been deleted."""
        return "let them be downloaded again" if self.download else "fetch them again"


def _idx_source(title: str, dataset: type[torchvision_datasets.MNIST]) -> Source:
    """MNIST and its likes: IDX files, whose header says how long they have to be."""
    stems = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    files = tuple(f"{dataset.__name__}/raw/{stem}" for stem in stems)

    def open(root: Path, train: bool) -> torchvision_datasets.MNIST:
        for file in files:
            _check_idx(title, root / file)
        data = dataset(str(root), train=train, download=False)
        if len(data.data) != len(data.targets) or not 0 <= data.targets.min() <= data.targets.max() < 10:
            labels = root / files[1 if train else 3]
            raise DataError(f"{title}: {labels} does not fit the images beside it; delete both and download them again")
        return data

    return Source(
        title,
        files,
        open,
        images=lambda data: data.data.unsqueeze(1),
        labels=lambda data: data.targets,
        download=lambda root: dataset(str(root), download=True),
    )


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

    def open(root: Path, train: bool) -> torchvision_datasets.SVHN:
        split = "train" if train else "test"
        _, file, md5 = svhn.split_list[split]
        _check_md5("SVHN", root / file, md5)
        return svhn(str(root), split=split, download=False)

    def download(root: Path) -> None:
        for split in ("train", "test"):
            svhn(str(root), split=split, download=True)

    return Source(
        "SVHN",
        ("train_32x32.mat", "test_32x32.mat"),
        open,
        images=lambda data: torch.from_numpy(data.data),
        labels=lambda data: torch.from_numpy(data.labels),
        download=download,
    )


def _cifar_source(title: str, cifar: type[torchvision_datasets.CIFAR10]) -> Source:
    """CIFAR-10, or CIFAR-100 with its fine labels: pickled batches."""
    batches = [file for file, _ in [*cifar.train_list, *cifar.test_list]]

    def open(root: Path, train: bool) -> torchvision_datasets.CIFAR10:
        for file, md5 in [*cifar.train_list, *cifar.test_list]:  # torchvision looks at all, but does not say which
            _check_md5(title, root / cifar.base_folder / file, md5)
        return cifar(str(root), train=train, download=False)

    return Source(
        title,
        tuple(f"{cifar.base_folder}/{batch}" for batch in [*batches, cifar.meta["filename"]]),
        open,
        images=lambda data: torch.from_numpy(data.data).permute(0, 3, 1, 2),
        labels=lambda data: torch.tensor(data.targets),
        download=lambda root: cifar(str(root), download=True),
        in_any_order=True,
    )


def _parquet_source(title: str, folder: str, label: str) -> Source:
    """A data set as it lies on the Hugging Face hub."""

    def inexact(train: ParquetImages, test: ParquetImages) -> str:
        if not train.inexact + test.inexact:
            return ""
        return (
            f"{train.inexact} of {len(train)} training and {test.inexact} of {len(test)} test images are not exact in "
            f"every pixel"
        )

    return Source(
        title,
        (f"{folder}/train.parquet", f"{folder}/test.parquet"),
        lambda root, train: ParquetImages([root / folder / f"{'train' if train else 'test'}.parquet"], label),
        images=all_decoded,
        labels=lambda data: data.labels,
        in_any_order=True,
        remark=inexact,
    )


def _usps_source() -> Source:
    """USPS as LIBSVM's page has it: text, a line an image."""
    usps = torchvision_datasets.USPS

    def open(root: Path, train: bool) -> torchvision_datasets.USPS:
        _, file, md5 = usps.split_list["train" if train else "test"]
        _check_md5("USPS", root / file, md5)
        return usps(str(root), train=train, download=False)

    def download(root: Path) -> None:
        for train in (True, False):
            usps(str(root), train=train, download=True)

    return Source(
        "USPS",
        tuple(file for _, file, _ in usps.split_list.values()),
        open,
        images=lambda data: torch.from_numpy(data.data).unsqueeze(1),
        labels=lambda data: torch.tensor(data.targets),
        download=download,
        in_any_order=True,
    )


def _usps_npz_source() -> Source:
    """USPS as arrays, uint8, in the names that data of one's own have."""
    return Source(
        "USPS",
        ("usps.npz",),
        lambda root, train: _ArraysOfImages(load_own(f"npz:{root / 'usps.npz'}", from_disk=False), train),
        images=lambda data: data.x,
        labels=lambda data: data.y,
        in_any_order=True,
    )


class _ArraysOfImages(Dataset):
    """One split of images in memory, as a dataset of (PIL image, label)."""

    def __init__(self, data: ImageData, train: bool):
        x = data.train_x if train else data.test_x
        assert isinstance(x, Tensor)
        self.x, self.y = x, data.train_y if train else data.test_y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int):
        return to_pil_image(self.x[index]), int(self.y[index])


TINY_IMAGENET = "tiny-imagenet-200"


def _tiny_imagenet_source() -> Source:
    def open(root: Path, train: bool) -> TinyImagenet:
        with redirect_stdout(io.StringIO()):  # Avalanche prints that the files are there
            data = TinyImagenet(root, train=train, loader=_read_jpeg, download=False)
        # Avalanche takes a folder's files as the file system happens to list them.
        samples = sorted(zip(data.targets, data.data, strict=True))
        data.targets, data.data = ([sample[column] for sample in samples] for column in (0, 1))
        counts = Counter(data.targets)
        full = max(counts.values(), default=0)
        for label, wnid in data.id2label.items():
            if not counts[label] or counts[label] < full:
                raise DataError(
                    f"Tiny ImageNet: {root / TINY_IMAGENET} is incomplete: class {wnid} has {counts[label]} "
                    f"{'training' if train else 'validation'} images, others {full}; delete the folder and let it be "
                    f"downloaded again"
                )
        return data

    return Source(
        "Tiny ImageNet",
        (f"{TINY_IMAGENET}/wnids.txt", f"{TINY_IMAGENET}/val/val_annotations.txt"),
        open,
        images=all_decoded,
        labels=lambda data: torch.tensor(data.targets),
        download=lambda root: TinyImagenet(root, download=True),
    )


def _read_jpeg(path: Path):
    """A PIL image of Tiny ImageNet, 64x64; the few grey ones become RGB."""
    try:
        image = default_loader(str(path))
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error and more
        problem = f"is missing, truncated or corrupt ({type(error).__name__})"
    else:
        if image.size == (64, 64):
            return image
        problem = f"is {image.width}x{image.height} and should be 64x64"
    raise DataError(
        f"Tiny ImageNet: {path} {problem}; delete the folder {TINY_IMAGENET} and let it be downloaded again"
    )


SOURCES: dict[str, tuple[Source, ...]] = {
    "mnist": (_idx_source("MNIST", torchvision_datasets.MNIST),),
    "fashion-mnist": (_idx_source("Fashion-MNIST", torchvision_datasets.FashionMNIST),),
    "usps": (_usps_source(), _usps_npz_source()),
    "svhn": (_svhn_source(),),
    "cifar10": (
        _cifar_source("CIFAR-10", torchvision_datasets.CIFAR10),
        _parquet_source("CIFAR-10", "cifar10", "label"),
    ),
    "cifar100": (
        _cifar_source("CIFAR-100", torchvision_datasets.CIFAR100),
        _parquet_source("CIFAR-100", "cifar100", "fine_label"),
    ),
    "tiny-imagenet": (_tiny_imagenet_source(),),
}
"""A data set's formats; the first, the library's own, can be downloaded."""
