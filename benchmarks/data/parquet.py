"""Image data sets as they lie on the Hugging Face hub: Parquet files with a column of encoded images, one of labels.

A folder holds ``train*.parquet`` and ``test*.parquet`` (or ``validation*``, ``valid*``, ``val*``), or has a folder
``data`` that does; a split may be in several files (``train-00000-of-00002.parquet``). Or each split has a folder,
as the hub itself lays them out: ``train/0000.parquet``, or ``default/train/0000.parquet``.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from PIL import Image, UnidentifiedImageError
from pyarrow import parquet
from torch import Tensor
from torch.utils.data import Dataset

from engrams.benchmarks.data.images import (
    GREY,
    ImageData,
    ImagesOnDisk,
    all_decoded,
    problem_of_colours,
    upright,
    upright_size,
)
from engrams.benchmarks.data.names import DataError, parquet_files

EXACT = "exact"
"""A column of booleans that says of an image whether every pixel is the original's; few data sets have one."""
LABELS = (
    *("label", "labels", "label_id", "fine_label", "coarse_label", "class", "classes", "class_id"),
    *("category", "category_id", "target", "targets", "y"),
)
"""What a column of labels is called, in capitals or not, where the metadata do not say which one it is."""


class ParquetImages(Dataset):
    """One split: ``images[n]`` is (PIL image, label) of the n-th row.

    The encoded images are in memory, a few kilobytes each; each is decoded when it is asked for.
    """

    def __init__(self, files: list[Path], label: str | None = None):
        """
        Args:
            files: of the split, in order.
            label: the column of the labels; None where there is one that can be meant.

        Raises:
            DataError: a file is missing, cut short or corrupt, or has no such columns; a label is missing or negative.
        """
        self.files = files
        self.where = " and ".join(map(str, files))
        try:
            schema = parquet.read_schema(files[0])
            image, label = _image_column(self.where, schema), _label_column(self.where, schema, label)
            exact = [EXACT] if EXACT in schema.names else []
            tables = [parquet.read_table(file, columns=[image, label, *exact]) for file in files]
        except DataError:
            raise
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(
                f"{self.where} is no Parquet file, or cut short or corrupt ({_said(error)}); fetch it again"
            ) from error
        try:
            table = pyarrow.concat_tables(tables, promote_options="permissive")
        except pyarrow.ArrowException as error:
            raise DataError(f"{self.where} have columns of other types ({_said(error)}); write them alike") from error
        column = table[image]
        if pyarrow.types.is_struct(column.type):
            column = pyarrow.chunked_array([chunk.field("bytes") for chunk in column.chunks])
        # Offsets of 32 bits end at 2 GiB of images.
        self.encoded = column.cast(pyarrow.large_binary()).combine_chunks()
        self.classes = _features(schema).get(label, {}).get("names")
        for file in files[1:]:
            if (names := _features(parquet.read_schema(file)).get(label, {}).get("names")) != self.classes:
                raise DataError(f"{file}: its classes are called {names}, those of {files[0]} {self.classes}")
        labels = table[label]
        if labels.null_count:
            raise DataError(f"{self.where}: {labels.null_count} rows have no label in the column {label!r}")
        self.labels = torch.from_numpy(labels.to_numpy().astype(np.int64))
        if len(self.labels) == 0:
            raise DataError(f"{self.where}: there is no row")
        if self.labels.min() < 0:
            raise DataError(
                f"{self.where}: the column {label!r} has the label {int(self.labels.min())}; labels are 0, 1, ... "
                f"(-1 is what the hub writes where they are kept secret)"
            )
        self.inexact = int((~table[EXACT].to_numpy().astype(bool)).sum()) if exact else 0
        self._formats: list[str] = []
        self._mode = self._agreed_mode()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._opened(index).convert(self._mode), int(self.labels[index])

    def _opened(self, index: int) -> Image.Image:
        try:
            image = upright(self._identified(index))
            image.load()
        except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, TypeError and more
            raise DataError(
                f"{self.where}: the image in row {index} is none, or truncated or corrupt ({type(error).__name__})"
            ) from error
        return image

    def _identified(self, index: int) -> Image.Image:
        """An image whose header has been read."""
        encoded = io.BytesIO(self.encoded[index].as_py())
        with suppress(UnidentifiedImageError):  # most often as the last one; PIL would try one format after another
            return Image.open(encoded, formats=self._formats)
        encoded.seek(0)
        image = Image.open(encoded)
        self._formats = [image.format] if image.format else []
        return image

    def _agreed_mode(self) -> str:
        """PIL's mode for all images, which have to be of one size and all grey or all coloured."""

        def header(index: int) -> tuple[tuple[int, int], str, str]:
            try:
                with self._identified(index) as image:
                    return upright_size(image), image.mode, problem_of_colours(image)
            except Exception as error:
                raise DataError(
                    f"{self.where}: row {index} holds no image, or a corrupt one ({type(error).__name__})"
                ) from error

        headers = list(map(header, range(len(self))))
        size = Counter(size for size, _, _ in headers).most_common(1)[0][0]
        grey = Counter(mode in GREY for _, mode, _ in headers).most_common(1)[0][0]
        for index, (its_size, mode, problem) in enumerate(headers):
            if its_size != size:
                raise DataError(
                    f"{self.where}: the image in row {index} is {its_size[0]}x{its_size[1]}, most are "
                    f"{size[0]}x{size[1]}; bring all to one size"
                )
            if problem:
                raise DataError(f"{self.where}: the image in row {index} {problem}")
            if (mode in GREY) != grey:
                what, most = ("grey", "coloured") if mode in GREY else ("coloured", "grey")
                raise DataError(
                    f"{self.where}: the image in row {index} is {what}, most are {most}; make all of one kind"
                )
        return "L" if grey else "RGB"


def load_parquet(folder: Path, label: str | None, from_disk: bool) -> ImageData:
    """Returns the images and labels of a folder of Parquet files.

    Args:
        folder: see the head of this file.
        label: the column of the labels; None where there is one that can be meant.
        from_disk: leave the images encoded, to be decoded one at a time.

    Raises:
        DataError: as :class:`ParquetImages`; images of the two splits differ in size or colour.
    """
    train, test = (ParquetImages(files, label) for files in parquet_files(folder))
    if train.classes and test.classes and train.classes != test.classes:
        pairs = enumerate(zip_longest(train.classes, test.classes))
        number, names = next((place, names) for place, names in pairs if names[0] != names[1])
        raise DataError(
            f"{folder}: class {number} is called {names[0]} in the training data and {names[1]} in the test data; give "
            f"both splits the same classes"
        )
    shapes = [np.asarray(data[0][0]).shape for data in (train, test)]
    if shapes[0] != shapes[1]:
        raise DataError(f"{folder}: training images have shape {shapes[0]}, test images {shapes[1]}")
    images: list[Tensor | ImagesOnDisk] = [ImagesOnDisk(train), ImagesOnDisk(test)]
    if not from_disk:
        images = [all_decoded(train), all_decoded(test)]
    return ImageData(images[0], train.labels, images[1], test.labels)


def _features(schema: pyarrow.Schema) -> dict[str, Any]:
    """What the hub's own metadata say of each column; empty where there are none."""
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}


def _image_column(where: str, schema: pyarrow.Schema) -> str:
    def holds_bytes(kind: pyarrow.DataType) -> bool:
        return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

    def fits(field: pyarrow.Field) -> bool:
        kind = field.type
        if pyarrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return holds_bytes(kind)

    found = [field.name for field in schema if fits(field)]
    if len(found) != 1:
        raise DataError(
            f"{where}: {'several columns hold' if found else 'no column holds'} images (bytes of PNG, JPEG, WebP, "
            f"...); it has {', '.join(found or schema.names)}"
        )
    return found[0]


def _label_column(where: str, schema: pyarrow.Schema, wanted: str | None) -> str:
    features = _features(schema)
    integers = [field.name for field in schema if _are_whole(field) and field.name != EXACT]
    if wanted is not None:
        if wanted not in integers:
            raise DataError(
                f"{where}: there is no column of whole numbers called {wanted!r}; it has "
                f"{', '.join(integers) or 'none'}"
            )
        return wanted
    if "label" in integers:
        return "label"
    named = [name for name in integers if features.get(name, {}).get("_type") == "ClassLabel"]
    if len(named) == 1:
        return named[0]
    called = [field for field in schema if field.name.lower() in LABELS]
    for field in called:  # beside labels in words, whole numbers are something else: folds, sizes
        if not _are_whole(field):
            other = ", or name another column behind the folder: parquet:FOLDER#COLUMN" if integers else ""
            raise DataError(
                f"{where}: the column {field.name!r} is {field.type}, and labels are whole numbers 0, 1, ...; write "
                f"those{other}"
            )
    if not integers:
        raise DataError(f"{where} has no labels: no column of whole numbers; it has {', '.join(schema.names)}")
    found = named or [field.name for field in called]
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"{where}: which column has the labels? Those of whole numbers are {', '.join(integers)}; name one behind the "
        f"folder: parquet:FOLDER#{(found or integers)[0]}"
    )


def _are_whole(column: pyarrow.Field) -> bool:
    """Whole numbers; truth values are 0 and 1."""
    return pyarrow.types.is_integer(column.type) or pyarrow.types.is_boolean(column.type)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
