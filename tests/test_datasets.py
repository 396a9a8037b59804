"""The real loading code on small files of the real format."""

import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets as torchvision_datasets

from engrams.benchmarks.data import datasets
from engrams.benchmarks.data.datasets import load
from engrams.benchmarks.data.images import ImagesOnDisk, as_float
from engrams.benchmarks.data.names import DataError
from engrams.benchmarks.data.streams import make_benchmark, prepared
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import run_of
from engrams.benchmarks.judging import generation, real_classifier
from engrams.benchmarks.protocols import registry as protocol
from tests.conftest import RAW, colour_of


def test_digits_come_with_scikit_learn():
    data = load("digits")
    assert data.train_x.shape == (1437, 1, 8, 8)
    assert data.test_x.shape == (360, 1, 8, 8)
    assert data.train_x.dtype == torch.float32
    assert 0 <= data.train_x.min() < data.train_x.max() <= 1
    assert data.classes == 10
    assert data.test_y.bincount().min() >= 34, "stratified"


def same_from_disk(name):
    """Images read one at a time are those that are read all at once."""
    whole, single = load(name), load(name, from_disk=True)
    for part in ("train", "test"):
        images = getattr(single, f"{part}_x")
        assert isinstance(images, ImagesOnDisk)
        assert torch.equal(torch.stack([images[n] for n in range(len(images))]), getattr(whole, f"{part}_x"))
        assert torch.equal(getattr(single, f"{part}_y"), getattr(whole, f"{part}_y"))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_from_engrams_data(idx_files, fresh_data, name, folder):
    root = idx_files(folder)
    fresh_data.setenv("ENGRAMS_DATA", str(root))
    data = load(name)
    raw = np.frombuffer((root / folder / "raw" / RAW[0]).read_bytes()[16:], np.uint8).reshape(60, 1, 28, 28)
    assert torch.equal(data.train_x, torch.tensor(raw))
    torch.testing.assert_close(as_float(data.train_x), torch.from_numpy(raw / 255).float())
    assert data.train_y.tolist() == [i % 10 for i in range(60)]
    assert len(data.test_y) == 30
    same_from_disk(name)
    assert datasets.find(name) == root


def test_avalanches_default_folder_is_looked_in_next(idx_files, fresh_data, tmp_path):
    root = idx_files()
    fresh_data.setenv("ENGRAMS_DATA", str(tmp_path / "elsewhere"))
    fresh_data.setattr(datasets, "default_dataset_location", lambda name: str(root))
    assert len(load("mnist").train_y) == 60


@pytest.mark.parametrize("stem", RAW)
@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_broken_file_is_named(idx_files, fresh_data, stem, damage):
    root = idx_files()
    path = root / "MNIST" / "raw" / stem
    content = path.read_bytes()
    path.write_bytes(content[:-5] if damage == "cut" else b"junk" + content[4:])
    fresh_data.setenv("ENGRAMS_DATA", str(root))
    with pytest.raises(DataError, match=rf"{stem} is truncated or corrupt \(\d+ bytes.*delete it") as caught:
        load("mnist")
    assert "\n" not in str(caught.value)


def test_labels_that_do_not_fit_the_images_are_named(idx_files, fresh_data):
    root = idx_files()
    path = root / "MNIST" / "raw" / RAW[1]
    path.write_bytes(path.read_bytes()[:8] + bytes([11] * 60))
    fresh_data.setenv("ENGRAMS_DATA", str(root))
    with pytest.raises(DataError, match="train-labels-idx1-ubyte does not fit the images beside it"):
        load("mnist")


def test_no_data_and_no_network_is_one_line_that_names_folders_and_files(fresh_data, tmp_path):
    fresh_data.setenv("ENGRAMS_DATA", str(tmp_path / "mine"))
    with pytest.raises(DataError) as caught:
        load("mnist")
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path / "mine"), str(tmp_path / "avalanche" / "mnist"), "ENGRAMS_DATA", *RAW):
        assert part in message


def test_unknown_name(fresh_data):
    with pytest.raises(DataError, match="no data set is called 'minst'"):
        load("minst")


def checksum(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def svhn_files(fresh_data, tmp_path):
    """Write SVHN's .mat files with 20 images to learn and 20 to test; returns those to test, [32, 32, 3, 20]."""
    rng = np.random.default_rng(0)
    split_list = {}
    for split, count in (("train", 20), ("test", 20)):
        path = tmp_path / f"{split}_32x32.mat"
        x = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(path, {"X": x, "y": (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]})  # SVHN calls zero 10
        split_list[split] = ["", path.name, checksum(path)]
    fresh_data.setattr(torchvision_datasets.SVHN, "split_list", split_list)
    fresh_data.setenv("ENGRAMS_DATA", str(tmp_path))
    return x


def test_svhn_from_mat_files(svhn_files, tmp_path):
    x = svhn_files
    data = load("svhn")
    assert data.train_x.shape == (20, 3, 32, 32)
    assert sorted(set(data.train_y.tolist())) == list(range(10))
    assert torch.equal(data.test_x[3, :, 1, 2], torch.from_numpy(x[1, 2, :, 3]))
    same_from_disk("svhn")
    datasets.load.cache_clear()
    (tmp_path / "test_32x32.mat").write_bytes(b"cut short")
    with pytest.raises(DataError, match=r"SVHN: .*/test_32x32.mat is truncated or corrupt"):
        load("svhn")


@pytest.mark.parametrize(("name", "mnist_first"), [("mnist-svhn", True), ("svhn-mnist", False)])
def test_two_data_sets_one_after_another(svhn_files, idx_files, name, mnist_first):
    """Twenty classes of grey 32x32 images: MNIST padded with black, SVHN as PIL makes it grey."""
    idx_files(train=60, test=30)
    data, mnist = load(name), load("mnist")
    assert data.train_x.shape == (80, 1, 32, 32)
    assert data.classes == 20
    of_mnist, of_svhn = (slice(0, 30), slice(30, 50)) if mnist_first else (slice(20, 50), slice(0, 20))
    assert torch.equal(data.test_x[of_mnist][:, :, 2:-2, 2:-2], mnist.test_x)
    assert data.test_x[of_mnist].sum() == mnist.test_x.sum()
    for n, image in enumerate(data.test_x[of_svhn]):
        grey = np.asarray(Image.fromarray(svhn_files[:, :, :, n]).convert("L"), dtype=int)
        assert np.abs(image[0].numpy().astype(int) - grey).max() <= 1  # rounded or cut
    offset = 0 if mnist_first else 10
    assert torch.equal(data.test_y[of_mnist], mnist.test_y + offset)
    assert set((data.test_y[of_svhn] - (10 - offset)).tolist()) == set(range(10))
    same_from_disk(name)


def test_mnist_then_svhn_is_two_experiences_of_the_same_ten_classes(svhn_files, idx_files):
    idx_files(train=60, test=30)
    for name in ("mnist-svhn", "svhn-mnist"):
        entry = protocol.get(name)
        benchmark = make_benchmark(prepared(entry.dataset, entry.images), entry.stream, "domain", "test", seed=0)
        sizes = [60, 20] if name == "mnist-svhn" else [20, 60]
        assert [len(e.dataset) for e in benchmark.train_stream] == sizes
        assert all(e.classes_in_this_experience == list(range(10)) for e in benchmark.train_stream)
        assert min(x.min() for x, *_ in benchmark.test_stream[0].dataset) == pytest.approx(-1, abs=0.02)


def test_a_scholar_learns_mnist_and_then_svhn(svhn_files, idx_files, monkeypatch, tmp_path):
    """From the files to the record; too short and too narrow to learn anything."""
    monkeypatch.setattr(real_classifier, "IMAGES_SEEN", 100)
    idx_files(train=60, test=30)
    entry = protocol.get("mnist-svhn")
    entry = entry.model_copy(update={"training": entry.training.model_copy(update={"epochs": 1})})
    one = run_of(entry, "dgr", 0, {"generator_epochs": 1, "width": 16})
    found = execute(one, tmp_path / "runs", "cpu", "disabled", lambda epochs: None)
    assert found.complete, found.reason
    assert np.array(found.accuracy_matrix).shape == (2, 2)
    shares = np.array(found.generated.class_shares)
    assert shares.shape == (2, 20), "a seven of MNIST's and one of SVHN's are told apart"
    assert shares.sum(axis=1) == pytest.approx(1)


def test_a_memory_replay_gan_learns_svhn_digit_after_digit(svhn_files, monkeypatch, tmp_path):
    """As the one before."""
    monkeypatch.setattr(real_classifier, "IMAGES_SEEN", 100)
    monkeypatch.setattr(generation, "REVERSE_IMAGES_SEEN", 100)
    entry = protocol.get("generate-svhn-reduced")
    short = {"steps": 1, "width": 16}
    entry = entry.model_copy(
        update={
            "gan": entry.gan.model_copy(update=short),
            "generation": entry.generation.model_copy(update={"images_per_class": 64}),
        }
    )
    one = run_of(entry, "mergan-ra", 0)
    found = execute(one, tmp_path / "runs", "cpu", "disabled", lambda rounds: None)
    assert found.complete, found.reason
    assert np.array(found.accuracy_matrix).shape == (10, 10)
    with Image.open(tmp_path / "runs" / "generate-svhn-reduced" / "mergan-ra" / "0" / "generated.png") as picture:
        red, green, blue = picture.convert("RGB").split()
        assert np.any(np.asarray(red) != np.asarray(blue)), "SVHN is coloured"
        assert np.any(np.asarray(red) != np.asarray(green))


@pytest.fixture
def cifar100_files(fresh_data, tmp_path):
    """Writes CIFAR-100's three files with five images a class to learn and one to test; returns the latter's pixels."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    cifar100 = torchvision_datasets.CIFAR100
    for name, count in (("train", 500), ("test", 100)):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        fine = [n % 100 for n in range(count)]
        batch = {"data": pixels, "fine_labels": fine, "coarse_labels": [label // 5 for label in fine]}
        (folder / name).write_bytes(pickle.dumps(batch))
        fresh_data.setattr(cifar100, f"{name}_list", [[name, checksum(folder / name)]])
    names = [f"class {n}" for n in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": names[:20]}))
    fresh_data.setattr(cifar100, "meta", {**cifar100.meta, "md5": checksum(folder / "meta")})
    fresh_data.setenv("ENGRAMS_DATA", str(tmp_path))
    return pixels


def test_cifar100_from_its_pickled_files(cifar100_files, tmp_path):
    data = load("cifar100")
    assert data.train_x.shape == (500, 3, 32, 32)
    assert data.classes == 100, "the fine labels"
    assert data.test_y.tolist() == list(range(100))
    assert torch.equal(data.test_x[42].flatten(), torch.from_numpy(cifar100_files[42])), "planes of red, green, blue"
    assert datasets.find("cifar100") == tmp_path
    same_from_disk("cifar100")
    datasets.load.cache_clear()
    (tmp_path / "cifar-100-python" / "test").write_bytes(b"cut short")
    with pytest.raises(DataError, match=r"CIFAR-100: .*/cifar-100-python/test is truncated or corrupt"):
        load("cifar100")


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_split_cifar100_is_that_of_lopez_paz_and_ranzato(cifar100_files, scenario):
    entry = protocol.get(f"split-cifar100/{scenario}")
    benchmark = make_benchmark(prepared(entry.dataset, entry.images), entry.stream, scenario, "test", seed=0)
    assert len(benchmark.train_stream) == 20
    for index, experience in enumerate(benchmark.train_stream):
        first = 5 * index if scenario == "class" else 0
        assert experience.classes_in_this_experience == list(range(first, first + 5))
        assert len(experience.dataset) == 25
        assert all(x.min() >= 0 and x.max() <= 1 for x, *_ in experience.dataset)
    training = entry.training
    assert (training.optimizer, training.learning_rate, training.batch_size, training.epochs) == ("sgd", 0.1, 10, 1)


def test_cifar10_from_pickled_batches(fresh_data, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    lists = {"train_list": [], "test_list": []}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
        lists["test_list" if name == "test_batch" else "train_list"].append([name, checksum(folder / name)])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    for attribute, value in lists.items():
        fresh_data.setattr(torchvision_datasets.CIFAR10, attribute, value)
    meta = {"filename": "batches.meta", "key": "label_names", "md5": checksum(folder / "batches.meta")}
    fresh_data.setattr(torchvision_datasets.CIFAR10, "meta", meta)
    fresh_data.setenv("ENGRAMS_DATA", str(tmp_path))
    data = load("cifar10")
    assert data.train_x.shape == (50, 3, 32, 32)
    assert torch.equal(data.test_x[4].flatten(), torch.from_numpy(pixels[4]))
    same_from_disk("cifar10")
    datasets.load.cache_clear()
    (folder / "data_batch_3").write_bytes(b"cut short")
    with pytest.raises(DataError, match=r"CIFAR-10: .*/data_batch_3 is truncated or corrupt"):
        load("cifar10")


def test_tiny_imagenet_from_its_folder(fresh_data, tiny_imagenet):
    fresh_data.setenv("ENGRAMS_DATA", str(tiny_imagenet))
    data = load("tiny-imagenet")
    assert data.train_x.shape == (400, 3, 64, 64)
    assert data.test_x.shape == (200, 3, 64, 64)
    assert data.train_x.dtype == torch.uint8
    assert data.train_y.tolist() == [label for label in range(200) for _ in range(2)]
    assert data.test_y.tolist() == list(range(200))
    # Labels are the places in wnids.txt, and every class's images have a colour of their own; JPEG keeps it roughly.
    colours = torch.tensor([colour_of(label) for label in range(200)])
    assert (data.train_x.float().mean((2, 3)) - colours[data.train_y]).abs().max() < 4
    assert (data.test_x.float().mean((2, 3)) - colours[data.test_y]).abs().max() < 4
    same_from_disk("tiny-imagenet")


def test_the_order_of_tiny_imagenet_is_not_the_file_systems(fresh_data, tiny_imagenet):
    fresh_data.setenv("ENGRAMS_DATA", str(tiny_imagenet))
    listed = Path.iterdir
    fresh_data.setattr(Path, "iterdir", lambda self: sorted(listed(self), reverse=True))
    names = [path.name for path in load("tiny-imagenet", from_disk=True).train_x.dataset.data]
    assert names[:3] == ["n00000199_0.JPEG", "n00000199_1.JPEG", "n00000198_0.JPEG"]


def test_grey_images_of_tiny_imagenet_have_three_channels(fresh_data, tiny_imagenet):
    image = Image.new("L", (64, 64), 100)
    image.save(tiny_imagenet / "tiny-imagenet-200/train/n00000199/images/n00000199_0.JPEG")
    fresh_data.setenv("ENGRAMS_DATA", str(tiny_imagenet))
    assert load("tiny-imagenet").train_x[0].unique().tolist() == [100]


@pytest.mark.parametrize("damage", ["cut", "missing", "small"])
@pytest.mark.parametrize("from_disk", [False, True])
def test_a_broken_image_of_tiny_imagenet_is_named(fresh_data, tiny_imagenet, damage, from_disk):
    path = tiny_imagenet / "tiny-imagenet-200/val/images/val_7.JPEG"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    elif damage == "missing":
        path.unlink()
    else:
        Image.new("RGB", (32, 32)).save(path)
    fresh_data.setenv("ENGRAMS_DATA", str(tiny_imagenet))
    problem = "is 32x32 and should be 64x64" if damage == "small" else "is missing, truncated or corrupt"
    with pytest.raises(DataError, match=rf"Tiny ImageNet: .*/val_7.JPEG {problem}.*; delete the folder") as caught:
        load("tiny-imagenet", from_disk).test_x[7]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("from_disk", [False, True])
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("train/n00000003/images/n00000003_1.JPEG", "is incomplete: class n00000003 has 1 training images, others 2"),
        ("train/n00000003", "are corrupt .FileNotFoundError"),
        ("wnids.txt", "is not here and could not be downloaded"),
        ("val/val_annotations.txt", "is not here and could not be downloaded"),
    ],
)
def test_an_incomplete_tiny_imagenet_is_refused(fresh_data, tiny_imagenet, capsys, missing, message, from_disk):
    path = tiny_imagenet / "tiny-imagenet-200" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    fresh_data.setenv("ENGRAMS_DATA", str(tiny_imagenet))
    with pytest.raises(DataError, match=f"Tiny ImageNet.*{message}") as caught:
        load("tiny-imagenet", from_disk)
    assert "\n" not in str(caught.value)
