"""Data of one's own -> images or vectors, and labels; checked, so that what is wrong is said before anything learns.

Arrays, of an ``.npz`` file or returned by a function, are

- images: uint8, or floats in [0, 1]; [N, height, width] for grey ones, else [N, height, width, channels] or
  [N, channels, height, width], told apart by which of the two is 1 or 3;
- or vectors, the features of another network say: floats, [N, values].

Labels are integers 0, 1, ... without gaps, [N] (or [N, 1], as Keras has some).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.training.determinism.rng_manager import RNGManager
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from engrams.benchmarks.data.images import (
    GREY,
    ImageData,
    ImagesOnDisk,
    PreparedLater,
    all_decoded,
    problem_of_colours,
    upright,
    upright_size,
)
from engrams.benchmarks.data.names import FOLDER, NPZ, PARQUET, SPLITS, DataError, label_column, path_of
from engrams.benchmarks.data.parquet import load_parquet
from engrams.strategies.references import BadReference, resolve
from engrams.strategies.undisturbed import same_random_numbers

SEED = 0
"""Of what a function draws from the global generators: the same data in every run."""
ARRAYS = (
    ("train_images", "x_train"),
    ("train_labels", "y_train"),
    ("test_images", "x_test"),
    ("test_labels", "y_test"),
)
"""What the arrays of an ``.npz`` file may be called: our name and Keras's; vectors are called images too."""


def load_own(dataset: str, from_disk: bool) -> ImageData:
    """Returns data of one's own.

    Args:
        dataset: ``npz:path``, ``folder:path``, ``parquet:path``, ``module:function`` or ``file.py:function``.
        from_disk: leave the images of a folder on disk, to be read one at a time. Arrays are always in memory, and the
            images of Parquet files as small as the files have them.

    Raises:
        DataError: the data are missing, broken or not as they have to be; the message is one line.
    """
    path = path_of(dataset)
    if path is None:
        return _returned(dataset)
    if dataset.startswith(f"{NPZ}:"):
        return _checked(str(path), _arrays(path), [ours for ours, _ in ARRAYS])
    if dataset.startswith(f"{PARQUET}:"):
        data = load_parquet(path, label_column(dataset), from_disk)
        _check_classes(str(path), data.train_y, data.test_y)
    else:
        assert dataset.startswith(f"{FOLDER}:")
        data = _folder(path, from_disk)
    for split, images in zip(SPLITS, (data.train_x, data.test_x), strict=True):
        _check_levels(f"{path}: {split}", images)
    return data


# --- arrays -----------------------------------------------------------------------------------------------------------


def _arrays(path: Path) -> list[np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise DataError(f"{path}: it holds one array without a name; write it with numpy.savez")
        with file:
            return [_array(path, file, names) for names in ARRAYS]
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except DataError:
        raise
    except Exception as error:  # whatever NumPy, zipfile and zlib make of a broken file
        raise DataError(f"{path} is no .npz file, or truncated or corrupt ({_said(error)})") from error


def _array(path: Path, file: Any, names: tuple[str, str]) -> np.ndarray:
    found = [name for name in names if name in file]
    if len(found) != 1:
        ours, keras = names
        problem = f"both {ours} and {keras}" if found else f"no array {ours} (nor {keras}); it has {_listed(file)}"
        raise DataError(f"{path} has {problem}")
    try:
        return file[found[0]]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise DataError(f"{path}: {found[0]} holds Python objects; save an array of numbers") from error
        raise


def check_repeatable(dataset: str, once: ImageData) -> None:
    """Calls a function of one's own again.

    Args:
        dataset: the function.
        once: what it returned before.

    Raises:
        DataError: it returns other data the second time, as each run would learn others; or as :func:`load_own`.
    """
    again = _returned(dataset)
    for name in ("train_y", "test_y", "train_x", "test_x"):
        columns = getattr(once, name), getattr(again, name)
        if all(isinstance(column, Tensor) for column in columns) and not torch.equal(*columns):
            raise DataError(
                f"{dataset} returns other data whenever it is called, and every run would learn its own: give what it "
                f"draws at random a seed"
            )


def _returned(dataset: str) -> ImageData:
    try:
        with same_random_numbers():  # its file may set a seed
            function = resolve(dataset)
    except BadReference as error:
        raise DataError(str(error)) from error
    if not callable(function):
        raise DataError(f"{dataset} is no function but a {type(function).__name__}")
    try:
        with same_random_numbers():
            RNGManager.set_random_seeds(SEED)
            data = function()
    except Exception as error:  # somebody's own code: anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(f"{dataset} fails in {frame.filename}, line {frame.lineno}: {_said(error)}") from error
    names = ["its first array", "its second array", "its third array", "its fourth array"]
    if isinstance(data, ImageData):
        if data.standardise or data.black.any():
            raise DataError(
                f"{dataset} returns an ImageData with standardise or black set, which a protocol says for all data: "
                f'leave them out, and write images = {{ standardise = "first-experience" }}, or images.mean and '
                f"images.std, there"
            )
        columns = (data.train_x, data.train_y, data.test_x, data.test_y)
        names = ["train_x", "train_y", "test_x", "test_y"]
    elif isinstance(data, Sequence) and len(data) == 4:
        columns = tuple(data)
    else:
        raise DataError(
            f"{dataset} returns a {type(data).__name__}; it has to return an ImageData, or four arrays: training "
            f"images and labels, test images and labels"
        )
    try:
        arrays = [column if isinstance(column, ImagesOnDisk) else np.asarray(column) for column in columns]
    except Exception as error:
        raise DataError(f"{dataset} returns what NumPy cannot make an array of ({_said(error)})") from error
    return _checked(dataset, arrays, names, channels_first=isinstance(data, ImageData))


def _checked(
    source: str, arrays: Sequence[np.ndarray | ImagesOnDisk], names: Sequence[str], channels_first: bool = False
) -> ImageData:
    """
    Args:
        source: what the message begins with.
        arrays: training inputs and labels, test inputs and labels.
        names: of the arrays, for the message.
        channels_first: images are [N, channels, height, width], with any number of channels.
    """
    inputs: list[Tensor | ImagesOnDisk] = []
    labels: list[Tensor] = []
    for place in (0, 2):
        x, y = arrays[place], arrays[place + 1]
        if isinstance(x, ImagesOnDisk):
            inputs.append(x)
        else:
            inputs.append(_inputs(f"{source}: {names[place]}", x, channels_first))
        labels.append(_labels(f"{source}: {names[place + 1]}", y))
        if len(x) != len(labels[-1]):
            raise DataError(f"{source}: {names[place]} has {len(x)}, {names[place + 1]} {len(labels[-1])}")
    for name, images in zip((names[0], names[2]), inputs, strict=True):
        _check_levels(f"{source}: {name}", images)
    shapes = [tuple(x[0].shape) for x in inputs]
    if shapes[0] != shapes[1]:
        raise DataError(f"{source}: training data have shape {shapes[0]} each, test data {shapes[1]}")
    _check_classes(source, *labels)
    return ImageData(inputs[0], labels[0], inputs[1], labels[1])


def _inputs(name: str, x: np.ndarray, channels_first: bool) -> Tensor:
    """Images [N, channels, height, width], uint8 or float32; or vectors [N, values], float32."""
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise DataError(
            f"{name} has shape {x.shape}; images are [N, height, width] or have channels besides, vectors [N, values]"
        )
    floats = np.issubdtype(x.dtype, np.floating)
    if not floats and (x.dtype != np.uint8 or x.ndim == 2):
        what = "vectors are floats [N, values]" if x.ndim == 2 else "images are uint8 in [0, 255] or floats in [0, 1]"
        hint = "; reshape images to [N, height, width]" if x.dtype == np.uint8 else ""
        raise DataError(f"{name} is {x.dtype}; {what}{hint}")
    if floats:
        x = x.astype(np.float32, copy=False)
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
        if bad.any():
            raise DataError(f"{name}: {bad.sum()} of {len(x)} have NaN or infinite values, the first at {bad.argmax()}")
        if x.ndim > 2 and not 0 <= x.min() <= x.max() <= 1:
            raise DataError(f"{name}: images that are floats lie in [0, 1]; these go from {x.min():g} to {x.max():g}")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and not channels_first:
        first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
        if first == last:
            raise DataError(
                f"{name} has shape {x.shape}: which are the channels? Images have 1 or 3, either second or last (a "
                f"function may return an ImageData, whose images are [N, channels, height, width])"
            )
        x = x if first else x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.array(x))  # a copy, contiguous: nobody else's array is changed


def _check_levels(name: str, images: Tensor | ImagesOnDisk | PreparedLater) -> None:
    """Refuses images of whole numbers that are masks of 0 and 1, and would be all but black; most end at the first."""
    highest = 0
    for index in range(len(images)):
        image = images[index]
        if image.dtype != torch.uint8 or (highest := max(highest, int(image.max()))) > 1:
            return
    if highest == 1:
        raise DataError(
            f"{name}: of uint8 images black is 0 and white 255, but these go from 0 to 1; multiply all images by 255, "
            f"or give floats"
        )


def _labels(name: str, y: Any) -> Tensor:
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or len(y) == 0 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{name} is {y.dtype} of shape {y.shape}; labels are integers, one a sample")
    if y.min() < 0:
        raise DataError(f"{name} has the label {y.min()}; labels are 0, 1, ...")
    return torch.from_numpy(y.astype(np.int64))


def _check_classes(source: str, train: Tensor, test: Tensor) -> None:
    """Labels without gaps, and the same classes in both."""
    classes = int(train.max()) + 1
    if classes < 2:
        raise DataError(f"{source}: all training labels are 0; there have to be at least two classes")
    absent = sorted(set(range(classes)) - set(train.tolist()))
    if absent:
        raise DataError(
            f"{source}: training labels go up to {classes - 1}, but {_labelled(absent)} not among them; number the "
            f"classes without gaps"
        )
    for labels, where, other in (
        (set(test.tolist()) - set(range(classes)), "the test data", "the training data"),
        (set(range(classes)) - set(test.tolist()), "the training data", "the test data"),
    ):
        if labels:
            raise DataError(f"{source}: {_labelled(sorted(labels))} in {where}, but not in {other}")


def _labelled(labels: Sequence[int]) -> str:
    """``label 3 is`` or ``labels 3, 4, 5, ... are``."""
    shown = ", ".join(map(str, labels[:3])) + (", ..." if len(labels) > 3 else "")
    return f"label {shown} is" if len(labels) == 1 else f"labels {shown} are"


# --- a folder of images -----------------------------------------------------------------------------------------------


def _folder(root: Path, from_disk: bool) -> ImageData:
    """``root/train/CLASS/image`` and ``root/test/CLASS/image``; classes are numbered in the order of their names."""
    for split in SPLITS:
        if not (root / split).is_dir():
            raise DataError(
                f"{root / split}: there is no such folder; images are looked for in {root}/train/CLASS and "
                f"{root}/test/CLASS"
            )
    try:
        train, test = (_Images(str(root / split), is_valid_file=partial(_is_image, root)) for split in SPLITS)
    except (OSError, ValueError) as error:  # no class, or one without images
        raise DataError(f"{root}: {_said(error)}") from error
    if train.classes != test.classes:
        class_, where = next(
            (name, split)
            for name in sorted({*train.classes, *test.classes})
            for split, there in zip(SPLITS, (train, test), strict=True)
            if name not in there.classes
        )
        raise DataError(f"{root / where} has no folder {class_}, but {root / SPLITS[where == 'train']} has one")
    if len(train.classes) < 2:
        raise DataError(f"{root}: there have to be at least two classes")
    mode = _mode([Path(path) for data in (train, test) for path, _ in data.samples])
    train.loader = test.loader = lambda path: _read(path, mode)
    images: list[Tensor | ImagesOnDisk] = [ImagesOnDisk(train), ImagesOnDisk(test)]
    if not from_disk:
        images = [all_decoded(train), all_decoded(test)]
    return ImageData(images[0], torch.tensor(train.targets), images[1], torch.tensor(test.targets))


class _Images(ImageFolder):
    """Passes over what is hidden, which is in no fingerprint either: a desktop's files, a notebook's checkpoints."""

    def find_classes(self, directory):
        classes = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
        return classes, {name: label for label, name in enumerate(classes)}


def _is_image(root: Path, path: str) -> bool:
    hidden = any(part.startswith(".") for part in Path(path).relative_to(root).parts)
    return not hidden and has_file_allowed_extension(path, IMG_EXTENSIONS)


def _mode(paths: Sequence[Path]) -> str:
    """PIL's mode for all images: grey if every one is; they have to be of one size."""
    with ThreadPoolExecutor() as threads:
        headers = list(threads.map(_header, paths))
    size = Counter(size for size, _, _ in headers).most_common(1)[0][0]
    for path, (its_size, _, problem) in zip(paths, headers, strict=True):
        if its_size != size:
            raise DataError(
                f"{path} is {its_size[0]}x{its_size[1]}, most images are {size[0]}x{size[1]}; bring all to one size"
            )
        if problem:
            raise DataError(f"{path} {problem}")
    return "L" if all(mode in GREY for _, mode, _ in headers) else "RGB"


def _header(path: Path) -> tuple[tuple[int, int], str, str]:
    """Returns an image's size, PIL's mode and what is wrong with its colours."""
    try:
        with Image.open(path) as image:
            return upright_size(image), image.mode, problem_of_colours(image)
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error and more
        raise _broken(path, error) from error


def _read(path: str, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return upright(image).convert(mode)
    except Exception as error:
        raise _broken(path, error) from error


def _broken(path: Path | str, error: Exception) -> DataError:
    return DataError(f"{path} is no image, or truncated or corrupt ({type(error).__name__})")


def _listed(names: Any) -> str:
    return ", ".join(names) or "none"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
