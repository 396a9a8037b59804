"""What a protocol calls data of one's own: ``npz:path``, ``folder:path``, ``parquet:path``, or a function.

``parquet:path#column`` names the column of the labels; a function is ``module:function`` or ``file.py:function``.

Nothing is loaded here, torch least of all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from engrams.reports.errors import UserError
from engrams.strategies import references
from engrams.strategies.references import BadReference

NPZ, FOLDER, PARQUET = "npz", "folder", "parquet"
FEATURES = "features"
"""What features that ``engrams features`` made are called by, before a colon; and the folder that they lie in."""
SPLITS = ("train", "test")
"""The two folders in a folder of images."""
PARQUET_SPLITS = (("train",), ("test", "validation", "valid", "val"))
"""What the files of a folder's two splits may begin with; the first that is there is taken."""


CLASSES = {
    **dict.fromkeys(("digits", "mnist", "fashion-mnist", "usps", "svhn", "cifar10"), 10),
    **dict.fromkeys(("mnist-svhn", "svhn-mnist", "mnist-fashion", "mnist-usps", "usps-mnist"), 20),
    **dict.fromkeys(("cifar100", "cifar100-superclasses"), 100),
    "tiny-imagenet": 200,
}
"""How many each data set of Engrams' own has."""
OFFLINE = "ENGRAMS_OFFLINE"
"""Variable of the environment: set, nothing is downloaded."""


class DataError(UserError):
    """A data set is missing or broken; the message is one line that says which file and what to do."""


def is_own(dataset: str) -> bool:
    """Returns whether a data set's name is not one of Engrams' own."""
    return ":" in dataset and not dataset.startswith(f"{FEATURES}:")


def path_of(dataset: str) -> Path | None:
    """Returns the file or folder of ``npz:``, ``folder:`` and ``parquet:``, None for a function."""
    kind, _, path = dataset.partition(":")
    if kind == PARQUET:
        path = path.partition("#")[0]
    return Path(path).expanduser() if kind in (NPZ, FOLDER, PARQUET) else None


def label_column(dataset: str) -> str | None:
    """Returns the column of the labels that ``parquet:path#column`` names; None where it names none."""
    return dataset.partition("#")[2] or None if dataset.startswith(f"{PARQUET}:") else None


SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)")
"""A file's name: of what, which part, of how many."""
NUMBER = re.compile(r"\d{4}")
"""A file's name where a split has a folder of its own: which part."""


def parquet_files(folder: Path) -> list[list[Path]]:
    """Returns the files of the two splits of a folder of Parquet files, each in the order of their names.

    They are in the folder, or in ``data`` below it, or each split is a folder of its own, there or in ``default``.
    Where there is none of all that, they are so in the one folder below that has some: a configuration, on the hub.

    Raises:
        DataError: a split has no file, or not all that their names speak of; several folders below have some.
    """
    splits = [_files_of(folder, beginnings) for beginnings in PARQUET_SPLITS]
    if not any(splits) and folder.is_dir():
        below = sorted(one for one in folder.iterdir() if all(_files_of(one, names) for names in PARQUET_SPLITS))
        if len(below) > 1:
            named = ", ".join(one.name for one in below)
            raise DataError(f"{folder} has {named}: name one, as in {PARQUET}:{below[0]}")
        if below:
            return parquet_files(below[0])
    for files, beginnings in zip(splits, PARQUET_SPLITS, strict=True):
        if not files:
            raise DataError(
                f"{folder}: there is no {'*.parquet or '.join(beginnings)}*.parquet, nor in {folder / 'data'}, nor a "
                f"folder {' or '.join(beginnings)} of Parquet files"
            )
        _check_shards(files)
    return splits


def _files_of(folder: Path, beginnings: Iterable[str]) -> list[Path]:
    """Returns the files of a split, by what its name may begin with."""
    patterns = [f"{place}{beginning}*.parquet" for place in ("", "data/") for beginning in beginnings]
    patterns += [f"{place}{beginning}/*.parquet" for place in ("", "default/") for beginning in beginnings]
    return next((files for pattern in patterns if (files := sorted(folder.glob(pattern)))), [])


def _check_shards(files: list[Path]) -> None:
    """Raises a DataError where the names say that a part is missing, that the parts are of several cuts, or that there
    is the whole beside them.
    """
    parts = [file for file in files if SHARD.match(file.stem)]
    called_as_a_split = any(file.stem in names for file in files for names in PARQUET_SPLITS)
    if len(files) > 1 and (called_as_a_split or 0 < len(parts) < len(files)):
        named = ", ".join(file.name for file in files[:4])
        raise DataError(
            f"{files[0].parent}: {named} would all be read as one split; leave the whole or its parts, and name no "
            f"other file so"
        )
    numbers = [int(file.stem) for file in files if NUMBER.fullmatch(file.stem)]
    if numbers and (missing := sorted(set(range(numbers[-1])) - set(numbers))):
        raise DataError(f"{files[0].parent}: {missing[0]:04d}.parquet is missing before {numbers[-1]:04d}.parquet")
    cuts: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if shard := SHARD.match(file.stem):
            cuts.setdefault((shard[1], int(shard[3])), set()).add(int(shard[2]))
    for (of, count), there in cuts.items():
        if missing := sorted(set(range(count)) - there):
            more = f" and {len(missing) - 1} more are missing" if len(missing) > 1 else " is missing"
            raise DataError(
                f"{files[0].parent}: of the {count} files {of}-...-of-{count:05d}.parquet number {missing[0]}{more}"
            )
    if len(cuts) > 1:
        named = " and ".join(f"{of}-...-of-{count:05d}.parquet" for of, count in cuts)
        raise DataError(f"{files[0].parent}: there are {named}; leave those of one")


def absolute(dataset: str, folder: Path) -> str:
    """Returns the name with its path, if it has one, taken to be relative to the folder (a protocol file's).

    Raises:
        BadReference: it is a function's name and cannot be.
    """
    path = path_of(dataset)
    if path is not None:
        return f"{dataset.partition(':')[0]}:{folder.absolute() / path}{_behind(dataset)}"
    return references.absolute(dataset, folder) if is_own(dataset) else dataset


def short(dataset: str) -> str:
    """Returns the name without the folders above its file: what a record keeps, wherever the data lie."""
    path = path_of(dataset)
    if path is not None:
        return f"{dataset.partition(':')[0]}:{path.name}{_behind(dataset)}"
    return references.short(dataset) if is_own(dataset) else dataset


def _behind(dataset: str) -> str:
    column = label_column(dataset)
    return f"#{column}" if column else ""


def features_folders() -> list[Path]:
    """Returns where features are looked for, in order: below ENGRAMS_DATA, then below Avalanche's data folder."""
    named = os.environ.get("ENGRAMS_DATA")
    roots = [*filter(None, [named]), _avalanches_data_folder()]
    return [Path(root).expanduser() / FEATURES for root in roots]


def _avalanches_data_folder() -> str:
    """Returns what Avalanche reads from its settings, without reading Avalanche, which takes seconds."""
    try:
        settings = json.loads(Path("~/.avalanche/config.json").expanduser().read_text(encoding="utf-8"))
        return str(settings["dataset_location"])
    except (OSError, ValueError, LookupError, TypeError):  # it will write them when it is first read
        return "~/.avalanche/data"


def found_features(name: str) -> Path | None:
    """Returns the file of ``features:NAME``; None if they have not been made."""
    files = (folder / f"{name.removeprefix(f'{FEATURES}:')}.npz" for folder in features_folders())
    return next((file for file in files if file.is_file()), None)


def features_fingerprint(dataset: str) -> str | None:
    """Returns that of the file of ``features:NAME``; None if they have not been made, or for any other data.

    Raises:
        DataError: the file cannot be read.
    """
    file = found_features(dataset) if dataset.startswith(f"{FEATURES}:") else None
    return fingerprint(f"{NPZ}:{file}") if file else None


_looked_at: dict[str, str] | None = None
"""Within :func:`settled`, data set -> its fingerprint."""


@contextmanager
def settled() -> Iterator[None]:
    """Within, data are taken not to change, and each are looked at once: a folder of many images takes a while."""
    global _looked_at
    before, _looked_at = _looked_at, {}
    try:
        yield
    finally:
        _looked_at = before


def fingerprint(dataset: str) -> str:
    """Returns 12 hexadecimal digits of what data of one's own are made of.

    Of a file its content; of a folder of images the names and contents of all files in ``train`` and ``test`` that are
    not hidden, nor in a hidden folder; of one of Parquet files those of both splits; of a function the source file that
    it stands in (what the function reads is not in it).

    Raises:
        DataError: there is no such file, folder or module, or it cannot be read.
    """
    if _looked_at is None:
        return _fingerprint(dataset)
    if dataset not in _looked_at:
        _looked_at[dataset] = _fingerprint(dataset)
    return _looked_at[dataset]


def _fingerprint(dataset: str) -> str:
    path = path_of(dataset)
    try:
        if path is None:
            return references.fingerprint(dataset)
        files = [path]
        if dataset.startswith(f"{FOLDER}:"):
            files = sorted(file for split in SPLITS for file in _visible_below(path / split))
        if dataset.startswith(f"{PARQUET}:"):
            files = [file for split in parquet_files(path) for file in split]
        looked_at = [(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return _content(path, tuple(looked_at))
    except BadReference as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{dataset}: {error.filename or path} cannot be read: {error.strerror}") from error


def _visible_below(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder that are not hidden, nor in a hidden folder; a folder may be a link."""
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = (one for one in folders if not one.startswith("."))
        yield from (Path(where, one) for one in files if not one.startswith("."))


@lru_cache(maxsize=8)
def _content(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Reads again only where a size or the time of a change differs."""
    digest = sha256()
    for file, *_ in files:
        if file != root:
            digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]
