"""A benchmark of Avalanche's, or of one's own, in place of a data set and a stream.

``avalanche:RotatedMNIST`` is a function of ``avalanche.benchmarks.classic``; ``module:function`` or
``file.py:function`` one of anybody's that returns an Avalanche benchmark.
"""

from __future__ import annotations

import errno
import inspect
import io
import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, benchmark_with_validation_stream, classic
from avalanche.benchmarks.datasets import default_dataset_location
from avalanche.benchmarks.scenarios import CLStream, OnlineCLExperience
from avalanche.benchmarks.utils import AvalancheDataset, TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from torch import Tensor
from torch.utils.data import default_collate

from engrams.benchmarks.data.boundaries import with_boundaries
from engrams.benchmarks.data.kept import forget, kept
from engrams.benchmarks.data.names import DataError
from engrams.benchmarks.data.streams import VALIDATION_SEED, labelled
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.protocols.schema import AVALANCHE, BenchmarkStream, Judge
from engrams.reports.errors import near_or
from engrams.strategies.references import BadReference, resolve
from engrams.strategies.undisturbed import same_random_numbers

LOOKED_AT = 10
"""Samples of every experience, before anything is learned."""
OF_THE_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMFILE)
"""Errors of files that are there, or could be."""
MOST_CLASSES = 2**15
"""What answers are kept as."""


def own_benchmark(reference: str, stream: BenchmarkStream, scenario: str, judge: Judge, seed: int) -> CLScenario:
    """Returns the streams of one run, as :func:`engrams.benchmarks.data.streams.make_benchmark` makes them.

    Args:
        reference: of the function that makes it.
        stream: its arguments, and how much is held out for choosing.
        scenario: ``task``: every experience has a task label of its own. ``domain`` and ``class`` read none.
        judge: ``test``, or ``validation``: a part of every training experience is held out by Avalanche's own split and
            judged on, and the test stream is left out.
        seed: given to the function, if it takes one and ``stream`` sets none.

    Raises:
        ProtocolError: there is no such function or argument; what it makes lacks what the scenario needs.
        DataError: it fails.
    """
    arguments = json.dumps(stream.arguments, sort_keys=True)
    tasks = scenario == "task"
    expected = experience_count(reference, arguments, tasks)  # first: one benchmark is kept
    parts = _both(reference, arguments, seed)
    if tasks:
        _check_task_labels(reference, parts)
    if (count := len(parts["train"])) != expected:
        raise ProtocolError(
            f"benchmark: {reference} has {count} experiences with the seed {seed} and {expected} with the seed 0; a "
            f"table needs as many with every seed"
        )
    if judge == "test":
        learned, judged = parts["train"], parts["test"]
    else:
        split = benchmark_with_validation_stream(
            benchmark_from_datasets(**parts), stream.validation_fraction, shuffle=True, seed=VALIDATION_SEED
        )
        learned, judged = ([one.dataset for one in split.streams[name]] for name in ("train", "valid"))
        if nothing := next((len(part) for part, held in zip(parts["train"], judged, strict=True) if not len(held)), 0):
            raise ProtocolError(
                f"stream.validation_fraction: {stream.validation_fraction:g} of an experience of {nothing} samples is "
                f"none to choose by; raise it"
            )
    return labelled(benchmark_from_datasets(train=with_boundaries(learned, stream, seed), **{judge: judged}))


@kept(maxsize=8)
def experience_count(reference: str, arguments: str, tasks: bool) -> int:
    """Returns how many experiences a benchmark has.

    Args:
        reference: of the function that makes it.
        arguments: as JSON.
        tasks: whether each must have a task label of its own.

    Raises:
        ProtocolError, DataError: as :func:`own_benchmark`.
    """
    parts = _both(reference, arguments, seed=0)
    if tasks:
        _check_task_labels(reference, parts)
    return len(parts["train"])


def check_repeatable(reference: str, arguments: str) -> None:
    """Asks for a benchmark twice.

    Raises:
        ProtocolError: it is another one the second time, as each run would learn another one.
        DataError: as :func:`own_benchmark`.
    """
    if reference.startswith(f"{AVALANCHE}:"):
        return
    digests = []
    for _ in range(2):
        forget(reference)
        digests.append([_digest(data) for stream in _both(reference, arguments, seed=0).values() for data in stream])
    if digests[0] != digests[1]:
        raise ProtocolError(
            f"benchmark: {reference} is another one whenever it is asked for, and every run would learn its own: let "
            f"what it draws at random follow a seed (an argument 'seed' is given the run's)"
        )


def _digest(data: AvalancheDataset) -> str:
    """Returns a digest of all labels and of some samples, as they are in evaluation."""
    found = sha256(repr([int(label) for label in data.targets]).encode())
    with same_random_numbers():
        for index in _some(data):
            found.update(data.eval()[index][0].numpy().tobytes())
    return found.hexdigest()


@kept(maxsize=1)
def _both(reference: str, arguments: str, seed: int) -> dict[str, list[AvalancheDataset]]:
    """Returns the data sets to learn, and as many to be judged on.

    Raises:
        ProtocolError, DataError: as :func:`own_benchmark`.
    """
    made = _made(reference, arguments, seed)
    shapes: list[torch.Size] = []
    parts = {name: _data_sets(reference, made, name, shapes) for name in ("train", "test")}
    if len(parts["test"]) == 1:  # CORe50's and OpenLORIS' is whole
        parts["test"] = _of_each_experiences_classes(parts["test"][0], parts["train"])
    if len(parts["train"]) != len(parts["test"]):
        raise ProtocolError(
            f"benchmark: {reference} has {len(parts['train'])} experiences to learn and {len(parts['test'])} to be "
            f"judged on; an accuracy matrix needs one of the second for each of the first"
        )
    classes = {name: [set(map(int, data.targets.uniques)) for data in part] for name, part in parts.items()}
    for place, (learned, judged) in enumerate(zip(classes["train"], classes["test"], strict=True)):
        if learned.isdisjoint(judged):
            raise ProtocolError(
                f"benchmark: experience {place} of {reference} has class {min(learned)} where it is learned and none "
                f"of its classes in the test_stream{f', but class {min(judged)}' if judged else ''}: give both streams "
                f"one order"
            )
    if new := sorted(set().union(*classes["test"]) - set().union(*classes["train"])):
        raise ProtocolError(f"benchmark: class {new[0]} is in the test_stream of {reference}, but in no train_stream")
    return parts


def _of_each_experiences_classes(
    whole: AvalancheDataset, learned: Sequence[AvalancheDataset]
) -> list[AvalancheDataset]:
    """Returns, for each experience, the test samples of the classes that it has."""
    targets = torch.tensor([int(target) for target in whole.targets])
    classes = (torch.tensor([int(target) for target in data.targets.uniques]) for data in learned)
    return [whole.subset(torch.isin(targets, own).nonzero().flatten().tolist()) for own in classes]


def _made(reference: str, arguments: str, seed: int) -> Any:
    """What the function returns; no random number is taken from the network's."""
    function = _function(reference)
    chosen = json.loads(arguments)
    given = chosen | {name: value for name, value in _offered(function, seed).items() if name not in chosen}
    _check_arguments(reference, function, given)
    avalanches = reference.startswith(f"{AVALANCHE}:")
    try:
        # Of every file that it looks for Avalanche prints whether it is there.
        with same_random_numbers(), redirect_stdout(io.StringIO()) if avalanches else nullcontext():
            try:
                return function(**given)
            except AssertionError:  # CLEAR takes a seed only where it draws something by it
                if "seed" not in given or "seed" in chosen:
                    raise
                return function(**{name: value for name, value in given.items() if name != "seed"})
    except Exception as error:  # somebody's own code, a download: anything
        if avalanches and _is_of_a_download(error):
            raise _not_here(reference, given.get("dataset_root"), error) from error
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(f"{reference} fails in {frame.filename}, line {frame.lineno}: {_said(error)}") from error


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """Returns what a function takes; None where it cannot be known: it is written in C, say."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def _offered(function: Callable[..., Any], seed: int) -> dict[str, Any]:
    """Returns what a function is given without being asked, as far as it takes that."""
    offered = {"seed": seed, "dataset_root": os.environ.get("ENGRAMS_DATA")}
    return {name: offered[name] for name in _parameters(function) or () if offered.get(name) is not None}


def _check_arguments(reference: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    takes = _parameters(function)
    if takes is None:
        return
    kinds = {parameter.kind for parameter in takes.values()}
    for name in given:
        if name not in takes and inspect.Parameter.VAR_KEYWORD not in kinds:
            hint = near_or(f"it takes {', '.join(takes) or 'none'}", name, takes)
            raise ProtocolError(f"stream.arguments.{name}: {reference} takes no such argument; {hint}")
    for name, parameter in takes.items():
        any_number = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.default is parameter.empty and not any_number and name not in given:
            raise ProtocolError(f"stream.arguments.{name}: missing; {reference} needs it")


def _is_of_a_download(error: Exception) -> bool:
    """Returns whether files could not be had: of several mirrors torchvision gathers the errors in a RuntimeError."""
    if isinstance(error, OSError):
        return error.errno not in OF_THE_DISK
    return str(error).startswith("Error downloading") or "is not present in the root directory" in str(error)


def _not_here(reference: str, root: str | None, error: Exception) -> DataError:
    folder = root or default_dataset_location("")
    hint = ""
    if "CIFAR" in reference:
        hint = " (Avalanche needs torchvision's own files; dataset = 'cifar10' or 'cifar100' takes Parquet files too)"
    return DataError(
        f"benchmark: the data of {reference} are not in {folder} and could not be downloaded "
        f"({_said(error).rstrip(':')}); put them there{hint}"
    )


def _function(reference: str) -> Callable[..., Any]:
    where, _, name = reference.rpartition(":")
    if where == AVALANCHE:
        found = getattr(classic, name, None)
        if not inspect.isfunction(found):
            known = [name for name, value in vars(classic).items() if name[0].isupper() and inspect.isfunction(value)]
            hint = near_or(f"there are {', '.join(sorted(known))}", name, known)
            raise ProtocolError(f"benchmark: no benchmark of Avalanche's is called {name!r}; {hint}")
        return found
    try:
        with same_random_numbers():  # its file may set a seed
            function = resolve(reference)
    except BadReference as error:
        raise ProtocolError(f"benchmark: {error}") from error
    if not callable(function):
        raise ProtocolError(f"benchmark: {reference} is no function but a {type(function).__name__}")
    return function


def _data_sets(reference: str, made: Any, stream: str, shapes: list[torch.Size]) -> list[AvalancheDataset]:
    """Returns those of a stream's experiences, checked, with task labels, in order.

    Args:
        reference: of the benchmark.
        made: it.
        stream: ``train`` or ``test``.
        shapes: of the samples met so far, which all have one; those of these are put behind.

    Raises:
        ProtocolError: one is none that can be learned.
    """
    experiences = getattr(made, f"{stream}_stream", None)
    if isinstance(made, CLStream) and any(map(_is_piece, made)):
        raise _in_pieces(reference)
    if experiences is None:
        what = f"a {type(made).__name__} without a {stream}_stream"
        raise ProtocolError(f"benchmark: {reference} returns {what}; it has to return an Avalanche benchmark")
    found: list[AvalancheDataset] = []
    for experience in experiences:
        if _is_piece(experience):
            raise _in_pieces(reference)
        data: Any = getattr(experience, "dataset", None)
        if not hasattr(data, "targets"):
            raise ProtocolError(
                f"benchmark: experience {len(found)} of {reference} has no classes: its data set has no targets "
                f"(avalanche's as_classification_dataset gives it some)"
            )
        if len(data) == 0:
            raise ProtocolError(f"benchmark: experience {len(found)} of {reference}'s {stream}_stream has no samples")
        if not hasattr(data, "task_set"):  # which Avalanche's own strategies read
            known = hasattr(data, "targets_task_labels")
            labels = [] if known else [TaskLabels(ConstantSequence(0, len(data)))]
            data = TaskAwareSupervisedClassificationDataset([data], data_attributes=labels)
        seen = data if stream == "train" else data.eval()
        shapes.append(_check_samples(f"{reference}, experience {len(found)} of its {stream}_stream,", seen, shapes))
        found.append(_in_order(data))
    if not found:
        raise ProtocolError(f"benchmark: {reference} has no experience in its {stream}_stream")
    return found


def _is_piece(experience: Any) -> bool:
    return isinstance(experience, OnlineCLExperience)


def _in_pieces(reference: str) -> ProtocolError:
    return ProtocolError(
        f"benchmark: {reference} makes an online stream, whose experiences come in pieces (split_online_stream); "
        f"return the benchmark before it is split: training.batch_size is a piece's size, epochs = 1 learns each once"
    )


def _in_order(data: AvalancheDataset) -> AvalancheDataset:
    """The samples in the order of the data set that they are a part of: Avalanche's have one class after another.

    So that what a seed shuffles is the same whoever made the stream, and the same settings give the same record.
    """
    indices = data._flat_data._indices  # there is no public way
    if indices is None:
        return data
    places = list(indices)
    return data.subset(sorted(range(len(places)), key=places.__getitem__))


def _some(data: AvalancheDataset) -> list[int]:
    """Returns the places of some samples: the first, the last, and others between."""
    return sorted({round(place) for place in np.linspace(0, len(data) - 1, LOOKED_AT)})


def _check_samples(where: str, data: AvalancheDataset, shapes: Sequence[torch.Size]) -> torch.Size:
    """Returns the shape of the samples, of which some are looked at.

    Args:
        where: they are, for messages.
        data: the samples.
        shapes: of others, which are to have the same.

    Raises:
        ProtocolError: they are none that a network, a loss and every strategy take; a class has no number that can be.
        DataError: one cannot be read.
    """
    x: Any = None
    for index in _some(data):
        try:
            with same_random_numbers():  # a transformation may draw some
                parts = data[index]
        except Exception as error:  # somebody's own code, a file: anything
            raise DataError(f"benchmark: sample {index} of {where} cannot be read: {_said(error)}") from error
        if len(parts) != 3:
            raise ProtocolError(
                f"benchmark: the samples of {where} have {len(parts)} parts, and some of Avalanche's strategies take "
                f"three: an input, a label, a task label (which use_in_getitem=True puts there); give them no others"
            )
        x, y, _ = parts
        if not isinstance(x, Tensor) or x.dtype != torch.get_default_dtype():  # the network's
            what = f"{x.dtype} tensors" if isinstance(x, Tensor) else f"of type {type(x).__name__}"
            raise ProtocolError(
                f"benchmark: the samples of {where} are {what}; a network takes float32: give it .float(), or a "
                f"transformation that makes them (torchvision's ToTensor())"
            )
        if not x.isfinite().all():
            raise ProtocolError(f"benchmark: sample {index} of {where} is not finite (NaN or infinite)")
        if shapes and x.shape != shapes[0]:
            raise ProtocolError(
                f"benchmark: sample {index} of {where} has shape {list(x.shape)}, those before {list(shapes[0])}; "
                f"bring all to one shape, in training and in evaluation"
            )
        _check_label(where, index, y, int(data.targets[index]))
    lowest, highest = min(data.targets.uniques), max(data.targets.uniques)
    if lowest < 0 or highest >= MOST_CLASSES:
        raise ProtocolError(
            f"benchmark: {where} has a class {lowest if lowest < 0 else highest}; classes are numbered from 0, below "
            f"{MOST_CLASSES:,}"
        )
    return x.shape


def _check_label(where: str, index: int, y: Any, target: int) -> None:
    """Raises a ProtocolError if a sample's label is no int64, which every loss takes, or not what its data set says."""
    try:
        label = default_collate([y])
    except TypeError:  # None, an object
        label = y
    if not isinstance(label, Tensor) or label.dim() > 1 or label.dtype != torch.int64:
        tensors = isinstance(label, Tensor)
        what = f"{label.dtype} tensors of shape {list(label.shape[1:])}" if tensors else f"of type {type(y).__name__}"
        raise ProtocolError(
            f"benchmark: the labels of {where} are {what}; a label is the number of its class: a Python int, or an "
            f"int64 tensor of no dimension (y.long(), or y.argmax() of one-hot labels)"
        )
    if int(label) != target:
        raise ProtocolError(
            f"benchmark: sample {index} of {where} has the label {int(label)}, and the targets of its data set say "
            f"{target}: by these the classes are known, and a target_transform does not change them; change the labels"
        )


def _check_task_labels(reference: str, parts: Mapping[str, Sequence[AvalancheDataset]]) -> None:
    labels, of_judged = ([sorted(data.targets_task_labels.uniques) for data in parts[name]] for name in parts)
    if any(len(of_one) > 1 for of_one in labels) or len({of_one[0] for of_one in labels}) < len(labels):
        first = ", ".join(str(of_one[0]) if len(of_one) == 1 else str(tuple(of_one)) for of_one in labels[:4])
        raise ProtocolError(
            f"benchmark: task-incremental learning needs task labels, one of its own for every experience; {reference} "
            f"has {first}, ... "
            f"(most of Avalanche's take return_task_id = true), or else say scenarios = ['domain'] or ['class']"
        )
    for place, (learned, judged) in enumerate(zip(labels, of_judged, strict=True)):
        if judged != learned:
            raise ProtocolError(
                f"benchmark: experience {place} of {reference} has the task label {learned[0]} where it is learned and "
                f"{', '.join(map(str, judged))} in the test stream, whose head would be asked"
            )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
