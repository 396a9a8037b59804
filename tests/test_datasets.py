"""The real loading code on small files of the real format."""

import bz2
import hashlib
import io
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from scipy.io import savemat
from torchvision import datasets as torchvision_datasets

from engrams.benchmarks.data import datasets, streams
from engrams.benchmarks.data.datasets import load
from engrams.benchmarks.data.images import ImagesOnDisk, as_float
from engrams.benchmarks.data.loading import tensors_of
from engrams.benchmarks.data.names import CLASSES, DataError
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
    entry = entry.model_copy(update={"training": entry.training.model_copy(update={"epochs": 1, "batch_size": 10})})
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
    one = replace(run_of(entry, "mergan-ra", 0), first=3)
    found = execute(one, tmp_path / "runs", "cpu", "disabled", lambda rounds: None)
    assert found.complete, found.reason
    assert np.array(found.accuracy_matrix).shape == (3, 3)
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
    assert sorted(data.test_y.tolist()) == list(range(100))
    for x, y in zip(data.test_x, data.test_y, strict=True):
        assert torch.equal(x.flatten(), torch.from_numpy(cifar100_files[y])), "planes of red, green, blue"
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


def in_parquet(path, pixels, **labels):
    """Writes flat CIFAR images as the hub has them, lossless, in another order than they are given in."""
    order = np.random.default_rng(1).permutation(len(pixels))
    encoded = []
    for planes in pixels[order]:
        file = io.BytesIO()
        Image.fromarray(planes.reshape(3, 32, 32).transpose(1, 2, 0)).save(file, format="PNG")
        encoded.append({"bytes": file.getvalue(), "path": None})
    columns = {name: np.asarray(values)[order] for name, values in labels.items()}
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({"img": encoded, **columns}), path)


def test_the_stream_is_the_same_to_the_bit_from_either_format_of_cifar100(cifar100_files, tmp_path):
    """What decides the order of samples is their labels and pixels, not the files."""
    entry = protocol.get("agem2019-split-cifar100")

    def stream():
        benchmark = make_benchmark(prepared(entry.dataset, entry.images), entry.stream, "task", "test", seed=3)
        return [tensors_of(one.dataset) for each in benchmark.streams.values() for one in each]

    pickled = stream()
    assert datasets.files_of("cifar100").startswith("cifar-100-python/train, ")
    for name in ("train", "test"):
        batch = pickle.loads((tmp_path / "cifar-100-python" / name).read_bytes())
        coarse = batch["coarse_labels"]
        in_parquet(
            tmp_path / "cifar100" / f"{name}.parquet",
            batch["data"],
            fine_label=batch["fine_labels"],
            coarse_label=coarse,
        )
    assert datasets.files_of("cifar100").startswith("cifar-100-python"), "torchvision's own files go first"
    shutil.rmtree(tmp_path / "cifar-100-python")
    for kept in (datasets.load, datasets.files_of, streams.prepared):
        kept.cache_clear()
    assert datasets.class_count("cifar100") == 100
    from_parquet = stream()
    assert datasets.files_of("cifar100") == "cifar100/train.parquet, cifar100/test.parquet"
    assert len(pickled) == len(from_parquet) == 2 * 17
    for ours, theirs in zip(pickled, from_parquet, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    same_from_disk("cifar100")


def test_cifar100_by_superclass_shows_the_same_twenty_by_other_classes(cifar100_files, tmp_path):
    """The files have the superclasses too: torchvision does not read them, the test does."""
    entry = protocol.get("domain-cifar100")
    benchmark = make_benchmark(prepared(entry.dataset, entry.images), entry.stream, entry.scenario, "test", seed=0)
    fine_of = {tuple(pixels.tolist()): fine for fine, pixels in enumerate(cifar100_files)}
    shown = []
    for experience in benchmark.test_stream:
        x, y, _ = tensors_of(experience.dataset)
        fine = [fine_of[tuple((255 * image).round().int().flatten().tolist())] for image in x]
        assert [datasets.COARSE[label] for label in fine] == y.tolist()
        assert sorted(y.tolist()) == list(range(20))
        shown.append(set(fine))
    assert len(shown) == 5
    assert set().union(*shown) == set(range(100))
    assert datasets.files_of(entry.dataset).startswith("cifar-100-python")


def test_the_canonical_order_is_that_of_labels_and_pixels_alone():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 2, (40, 1, 2, 2), dtype=np.uint8))  # some are there twice
    y = torch.arange(40) % 2
    order = datasets.canonical_order(x, y)
    assert sorted(order.tolist()) == list(range(40))
    mixed = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    other = mixed[datasets.canonical_order(x[mixed], y[mixed])]
    assert torch.equal(x[order], x[other])
    assert torch.equal(y[order], y[other])
    assert 5 < y[order][:20].sum() < 15, "the classes are mixed: the first samples are of both"


def test_usps_is_the_same_from_torchvisions_files_and_from_arrays(fresh_data, tmp_path):
    """LIBSVM's text has values in [-1, 1] and labels from 1 to 10."""
    rng = np.random.default_rng(0)
    usps, arrays, split_list = torchvision_datasets.USPS, {}, {}
    for split, file, count in (("train", "usps.bz2", 40), ("test", "usps.t.bz2", 20)):
        values = rng.integers(-1000, 1001, (count, 256)) / 1000
        y = np.arange(count) % 10
        lines = (
            f"{label + 1} " + " ".join(f"{place + 1}:{value:g}" for place, value in enumerate(row))
            for label, row in zip(y, values, strict=True)
        )
        (tmp_path / file).write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))
        split_list[split] = ["", file, checksum(tmp_path / file)]
        order = rng.permutation(count)
        pixels = ((values.astype(np.float32) + 1) / 2 * 255).astype(np.uint8).reshape(-1, 16, 16)
        arrays |= {f"{split}_images": pixels[order], f"{split}_labels": y[order]}
    fresh_data.setattr(usps, "split_list", split_list)
    fresh_data.setenv("ENGRAMS_DATA", str(tmp_path))
    text = load("usps")
    assert text.train_x.shape == (40, 1, 16, 16)
    np.savez(tmp_path / "usps.npz", **arrays)
    (tmp_path / "usps.bz2").unlink()
    datasets.load.cache_clear()
    ours = load("usps")
    for column in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(text, column), getattr(ours, column)), column
    same_from_disk("usps")


@pytest.mark.parametrize(("name", "mnist_first"), [("mnist-usps", True), ("usps-mnist", False)])
def test_mnist_and_usps_are_two_experiences_of_the_same_ten_digits(idx_files, fresh_data, tmp_path, name, mnist_first):
    """USPS's 16x16 in the middle of MNIST's 28x28, from disk as from memory."""
    idx_files(train=60, test=30)
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_{what}": values
        for split, count in (("train", 40), ("test", 20))
        for what, values in (
            ("images", rng.integers(1, 256, (count, 16, 16), dtype=np.uint8)),
            ("labels", np.arange(count) % 10),
        )
    }
    np.savez(tmp_path / "usps.npz", **arrays)
    fresh_data.setenv("ENGRAMS_DATA", str(tmp_path))
    same_from_disk(name)
    entry = protocol.get(name)
    benchmark = make_benchmark(prepared(entry.dataset, entry.images), entry.stream, entry.scenario, "test", seed=0)
    usps = benchmark.test_stream[1 if mnist_first else 0]
    assert len(benchmark.test_stream) == 2
    assert [len(experience.dataset) for experience in benchmark.train_stream] == ([60, 40] if mnist_first else [40, 60])
    x, y, _ = tensors_of(usps.dataset)
    black = (0 - entry.images.mean) / entry.images.std
    assert torch.allclose(x[:, :, :6], torch.tensor(black))
    assert torch.allclose(x[:, :, :, -6:], torch.tensor(black))
    inner = (x[:, 0, 6:-6, 6:-6] * entry.images.std + entry.images.mean) * 255
    found = {
        (label, tuple(image.round().int().flatten().tolist())) for image, label in zip(inner, y.tolist(), strict=True)
    }
    images, labels = arrays["test_images"], arrays["test_labels"].tolist()
    assert found == {(label, tuple(image.flatten().tolist())) for image, label in zip(images, labels, strict=True)}


def test_images_that_are_not_exact_are_told(fresh_data, tmp_path):
    rng = np.random.default_rng(0)
    fresh_data.setenv("ENGRAMS_DATA", str(tmp_path))
    for split, count in (("train", 20), ("test", 10)):
        pixels, y = rng.integers(0, 256, (count, 3072), dtype=np.uint8), np.arange(count) % 10
        in_parquet(tmp_path / "cifar10" / f"{split}.parquet", pixels, label=y, exact=y != 8)
    assert len(load("cifar10").train_y) == 20
    assert datasets.files_of("cifar10").endswith(
        "(2 of 20 training and 1 of 10 test images are not exact in every pixel)"
    )


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
    for x, y in zip(data.test_x, data.test_y, strict=True):
        assert torch.equal(x.flatten(), torch.from_numpy(pixels[y]))
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
    assert data.classes == CLASSES["tiny-imagenet"]
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


def test_the_classes_of_our_own_data_are_known_without_reading_them():
    assert set(CLASSES) == set(datasets.NAMES)
    assert CLASSES["digits"] == datasets.class_count("digits")
    for name, parts in datasets.SEQUENCES.items():
        assert CLASSES[name] == sum(CLASSES[part] for part in parts)
    assert CLASSES[datasets.SUPERCLASSES] == CLASSES["cifar100"] == len(datasets.COARSE)
    for name, data in (("fashion-mnist", torchvision_datasets.FashionMNIST), ("mnist", torchvision_datasets.MNIST)):
        assert CLASSES[name] == len(data.classes)
