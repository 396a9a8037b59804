"""What the tests share: small data sets in the real formats, and protocols that take a second."""

import os
import shutil
import struct
import sys
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from engrams.benchmarks.judging import real_classifier

torch.set_num_threads(1)  # small networks; and as the suite runs them, so that results are the same to the bit
# A test may stand in another folder when it starts a process; what is imported there is what is imported here.
if "PYTHONPATH" in os.environ:
    os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, os.environ["PYTHONPATH"].split(os.pathsep)))
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of a hundred processes compiles all again
# Command lines that the tests start have no terminal, no W&B account and no colour.
os.environ.pop("WANDB_API_KEY", None)
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "200"


def pytest_xdist_auto_num_workers(config) -> int:
    """One more than there are processors: half of the time of many a test is spent waiting for other processes."""
    return min((os.cpu_count() or 1) + 1, 4)


SLOWEST = (
    *("runs", "documents", "penalties_everywhere", "terminal", "datasets", "records"),
    *("places", "wandb_commands", "wandb", "checkpoints", "generation", "chaos", "search", "stopping", "package"),
)


def pytest_collection_modifyitems(items) -> None:
    """Files whose tests take longest come first: else one process is busy with them when all others are done."""
    place = {f"test_{name}.py": number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True, scope="session")
def each_classifier_of_real_images_is_trained_once(tmp_path_factory):
    """Not once a folder of records, which takes longer than most of what is tested; nor once a process of tests."""
    kept, train = tmp_path_factory.getbasetemp(), real_classifier.train_classifier
    if "PYTEST_XDIST_WORKER" in os.environ:
        kept = kept.parent  # which all processes share
    kept = kept / "real-classifiers"
    kept.mkdir(exist_ok=True)

    def trained_once(x, y, classes, images_seen):
        path = kept / f"{blake2b(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()[:32]}-{images_seen}.pt"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                torch.save(train(x, y, classes, images_seen), path)
            return torch.load(path, weights_only=False)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(real_classifier, "train_classifier", trained_once)
        yield


RAW = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(autouse=True)
def modules_of_a_test_are_its_own(tmp_path_factory):
    """Another test's ``mine.py`` is another module."""
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__dict__", {}).get("__file__")).startswith(folder):
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if not path.startswith(folder)]


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


def colour_of(label) -> tuple[int, int, int]:
    """The mean colour of a class's images in the small Tiny ImageNet."""
    return 40 + label, 220 - label, 60 + 7 * label % 150


@pytest.fixture(scope="session")
def whole_tiny_imagenet(tmp_path_factory):
    """Tiny ImageNet as its archive unpacks, with 2 training images a class and 1 for validation; its root folder."""
    root = tmp_path_factory.mktemp("tiny-imagenet")
    folder = root / "tiny-imagenet-200"
    rng = np.random.default_rng(0)

    def write(path: Path, label: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(-20, 21, (8, 8, 1)).repeat(8, 0).repeat(8, 1)
        pixels = np.array(colour_of(label)) + noise - noise.mean()
        Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(path, format="JPEG", quality=95)

    wnids = [f"n{199 - label:08d}" for label in range(200)]  # not in alphabetical order, as in the real one
    annotations = []
    for label, wnid in enumerate(wnids):
        for n in range(2):
            write(folder / "train" / wnid / "images" / f"{wnid}_{n}.JPEG", label)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        write(folder / "val" / "images" / f"val_{label}.JPEG", label)
        annotations.append(f"val_{label}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "words.txt").write_text("".join(f"{wnid}\tsomething\n" for wnid in wnids))
    return root


@pytest.fixture
def tiny_imagenet(whole_tiny_imagenet, tmp_path):
    """A copy that a test may damage; its root folder."""
    return Path(shutil.copytree(whole_tiny_imagenet, tmp_path / "data"))


@pytest.fixture
def fresh_data(monkeypatch, tmp_path):
    """No data set is loaded, none is in Avalanche's folder, and none can be downloaded."""
    from engrams.benchmarks.data import datasets, streams

    for kept in (datasets.load, datasets.files_of, streams.prepared):
        kept.cache_clear()
    monkeypatch.setattr(datasets, "default_dataset_location", lambda name: str(tmp_path / "avalanche" / name))
    monkeypatch.delenv("ENGRAMS_DATA", raising=False)

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    yield monkeypatch
    for kept in (datasets.load, datasets.files_of, streams.prepared):
        kept.cache_clear()


@pytest.fixture
def alone(tmp_path):
    """No account of W&B, an empty home, and a temporary folder of its own, which this is."""
    from tests.wandb_runs import nowhere

    with nowhere(tmp_path) as temporary:
        yield temporary


@pytest.fixture
def service(alone):
    """A stand-in for W&B's service, and a key to it."""
    from tests.wandb_runs import served

    with served() as found:
        yield found
