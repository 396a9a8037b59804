"""Data of one's own: arrays, folders of images, functions; what comes out, and what is said to those that cannot be."""

import io
import json
import os
import shutil
import sys

import numpy as np
import pyarrow
import pytest
import torch
from PIL import ExifTags, Image
from pyarrow import parquet

from engrams.benchmarks.data import datasets
from engrams.benchmarks.data.datasets import load
from engrams.benchmarks.data.images import ImagesOnDisk, upright, upright_size
from engrams.benchmarks.data.names import DataError, absolute, fingerprint, short

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 6, 5), dtype=np.uint8)
LABELS = np.arange(30) % 3
VECTORS = RNG.normal(size=(30, 7))


def arrays(train=IMAGES, train_labels=LABELS, test=None, test_labels=LABELS[:12]):
    return {
        "train_images": train,
        "train_labels": train_labels,
        "test_images": train[:12] if test is None else test,
        "test_labels": test_labels,
    }


@pytest.fixture
def saved(tmp_path):
    """Saves arrays; returns the data set's name."""

    def save(**columns):
        np.savez(tmp_path / "mine.npz", **columns)
        datasets.load.cache_clear()
        return f"npz:{tmp_path / 'mine.npz'}"

    return save


def test_grey_images(saved):
    data = load(saved(**arrays()))
    assert torch.equal(data.train_x, torch.from_numpy(IMAGES)[:, None])
    assert torch.equal(data.test_x, torch.from_numpy(IMAGES[:12])[:, None])
    assert data.train_x.dtype == torch.uint8
    assert (data.train_y.dtype, data.train_y.tolist()) == (torch.int64, LABELS.tolist())
    assert (data.classes, data.vectors) == (3, False)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_found_last_or_second(saved, channels):
    last = RNG.integers(0, 256, (30, 6, 5, channels), dtype=np.uint8)
    first = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    assert torch.equal(load(saved(**arrays(last))).train_x, torch.from_numpy(first))
    assert torch.equal(load(saved(**arrays(first))).train_x, torch.from_numpy(first))


def test_floats_are_images_between_0_and_1_or_vectors_of_any_size(saved):
    data = load(saved(**arrays(IMAGES / 255)))
    assert data.train_x.dtype == torch.float32
    torch.testing.assert_close(data.train_x, torch.from_numpy(IMAGES)[:, None] / 255)
    data = load(saved(**arrays(VECTORS)))
    torch.testing.assert_close(data.train_x, torch.from_numpy(VECTORS).float())
    assert data.vectors


def test_black_and_white_images_are_255_times_0_and_1_or_floats(saved):
    binary = IMAGES // 128
    assert load(saved(**arrays(binary * 255))).train_x.unique().tolist() == [0, 255]
    assert load(saved(**arrays(binary.astype(np.float32)))).train_x.unique().tolist() == [0, 1]
    for which in ("train", "test"):
        one = arrays(binary * 255) | {key: x for key, x in arrays(binary).items() if key == f"{which}_images"}
        with pytest.raises(DataError, match=f"{which}_images: of uint8 images .* these go from 0 to 1; multiply all"):
            load(saved(**one))


def test_kerass_names_and_columns_of_labels(saved):
    columns = {"x_train": IMAGES, "y_train": LABELS[:, None].astype(np.uint8), "x_test": IMAGES, "y_test": LABELS}
    assert load(saved(**columns)).train_y.tolist() == LABELS.tolist()


def with_one_changed(values, place, value):
    values = values.copy()
    values[place] = value
    return values


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": IMAGES, "b": IMAGES}, r"no array train_images \(nor x_train\); it has a, b"),
        ({**arrays(), "y_test": LABELS}, "both test_labels and y_test"),
        (arrays(train_labels=LABELS[:29]), "train_images has 30, train_labels 29"),
        (arrays(train_labels=LABELS / 2), "train_labels is float64 of shape .30,.; labels are integers"),
        (arrays(test_labels=np.eye(12, dtype=int)), r"test_labels is int64 of shape \(12, 12\); labels are integers"),
        (arrays(train_labels=LABELS - 1), "train_labels has the label -1"),
        (arrays(train_labels=LABELS * 2), "training labels go up to 4, but labels 1, 3 are not among them"),
        (arrays(train_labels=LABELS * 0), "at least two classes"),
        (arrays(test_labels=LABELS[:12] * 0), "labels 1, 2 are in the training data, but not in the test data"),
        (arrays(test_labels=LABELS[:12] + 1), "label 3 is in the test data, but not in the training data"),
        (arrays(test=IMAGES[:12, :4]), r"training data have shape \(1, 6, 5\) each, test data \(1, 4, 5\)"),
        (arrays(test=VECTORS[:12]), r"training data have shape \(1, 6, 5\) each, test data \(7,\)"),
        (arrays(IMAGES.astype(int)), "train_images is int64; images are uint8 in .0, 255. or floats"),
        (arrays(IMAGES.reshape(30, 30)), r"is uint8; vectors are floats \[N, values\]; reshape images"),
        (arrays(IMAGES / 1.0), "images that are floats lie in .0, 1.; these go from 0 to 255"),
        (
            arrays(IMAGES // 128),
            "train_images: of uint8 images black is 0 .* go from 0 to 1; multiply all images by 255",
        ),
        (arrays(IMAGES[:0]), r"train_images has shape \(0, 6, 5\)"),
        (arrays(VECTORS[:, 0]), r"train_images has shape \(30,\); images are"),
        (arrays(with_one_changed(VECTORS, (4, 2), np.nan)), "train_images: 1 of 30 have NaN .* the first at 4"),
        (arrays(VECTORS * 1e300), "train_images: 30 of 30 have NaN or infinite"),
        (arrays(np.zeros((30, 3, 5, 3), np.uint8)), r"shape \(30, 3, 5, 3\): which are the channels"),
        (arrays(np.zeros((30, 4, 5, 6), np.uint8)), r"shape \(30, 4, 5, 6\): which are the channels"),
        (arrays(np.array([[1], [2, 3]], dtype=object)), "train_images holds Python objects; save an array of numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_arrays_that_cannot_be_are_one_line(saved, columns, message):
    name = saved(**columns)
    with pytest.raises(DataError, match=message) as caught:
        load(name)
    assert str(caught.value).startswith(name.removeprefix("npz:"))
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_named(saved, tmp_path):
    name = saved(**arrays())
    path = tmp_path / "mine.npz"
    whole = path.read_bytes()
    with_damage = whole[:200] + b"garbage" + whole[207:]
    for content in (whole[: len(whole) // 2], with_damage, b"", b"text", b"\x80\x04K\x01."):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"mine.npz is no .npz file, or truncated or corrupt") as caught:
            load(name)
        assert "\n" not in str(caught.value)
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DataError, match=r"mine.npz: it holds one array without a name"):
        load(name)
    path.unlink()
    for what in (load, fingerprint):
        with pytest.raises(DataError, match=r"mine.npz( cannot be read: No such file|: there is no such file)"):
            what(name)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Three classes of five and two images, 6x5, lossless; returns their folder."""
    for split, count in (("train", 5), ("test", 2)):
        for label, kind in enumerate(("ant", "bee", "cow")):
            (tmp_path / split / kind).mkdir(parents=True)
            for n in range(count):
                pixels = np.full((5, 6, 3), (80 * label, n, 200), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / kind / f"{n}.png")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    datasets.load.cache_clear()
    return tmp_path


@pytest.mark.parametrize("from_disk", [False, True])
def test_a_folder_of_images(folder, from_disk):
    data = load(f"folder:{folder}", from_disk)
    assert isinstance(data.train_x, ImagesOnDisk) == from_disk
    x = torch.stack([data.train_x[n] for n in range(15)])
    assert (x.shape, x.dtype) == ((15, 3, 5, 6), torch.uint8)
    assert data.train_y.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert x[:, 0, 0, 0].tolist() == [80 * label for label in data.train_y.tolist()]
    assert x[:, 1, 0, 0].tolist() == [0, 1, 2, 3, 4] * 3
    assert data.test_y.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_folder_of_grey_images_has_one_channel(folder):
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            image.convert("L").save(path)
    assert load(f"folder:{folder}").train_x.shape == (15, 1, 5, 6)
    with Image.open(folder / "test" / "bee" / "1.png") as image:
        image.convert("P").save(folder / "test" / "bee" / "1.png")  # one of them with a palette
    datasets.load.cache_clear()
    assert load(f"folder:{folder}").train_x.shape == (15, 3, 5, 6)


def on_its_side(pixels, orientation=6, format="PNG"):
    """An image as a camera that is turned by a quarter to the left writes it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(np.rot90(pixels), format, exif=exif)


@pytest.mark.parametrize("from_disk", [False, True])
def test_an_image_of_a_folder_is_turned_upright(folder, from_disk):
    path = folder / "test" / "bee" / "1.png"
    pixels = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    path.write_bytes(on_its_side(pixels)["bytes"])
    image = load(f"folder:{folder}", from_disk).test_x[3]
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("from_disk", [False, True])
def test_masks_of_0_and_1_are_not_taken_for_images(folder, hub, from_disk):
    masks = {"image": [encoded(x[..., 0] // 128) for x in COLOURED]}
    with pytest.raises(DataError, match="but these go from 0 to 1; multiply all images by 255"):
        load(hub(masks, {"image": masks["image"][:12]}), from_disk)
    for path in folder.rglob("*.png"):
        path.write_bytes(masks["image"][0]["bytes"])
    with pytest.raises(DataError, match="but these go from 0 to 1; multiply all images by 255"):
        load(f"folder:{folder}", from_disk)
    for image in ("train/cow/4.png", "test/cow/1.png"):
        (folder / image).write_bytes(encoded(COLOURED[0][..., 0])["bytes"])
        datasets.load.cache_clear()
        if image.startswith("train"):
            with pytest.raises(DataError, match=r"test: of uint8 images .* these go from 0 to 1"):
                load(f"folder:{folder}", from_disk)
    assert load(f"folder:{folder}", from_disk).test_x[0].max() == 1


UNSEEN = {
    "transparency .PIL's mode RGBA": ("PNG", "RGBA"),
    "transparency .PIL's mode LA": ("PNG", "LA"),
    "transparency .PIL's mode P": ("PNG", "P"),
    "transparency .PIL's mode RGB": ("PNG", "RGB"),
    "other colours than RGB .PIL's mode CMYK": ("JPEG", "CMYK"),
}


def with_a_hole(pixels, format, mode):
    """An image of which the first pixel, and what has its colour where the colour says it, is transparent."""
    image = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray((np.indices(pixels.shape[:2]).sum(0) > 0).astype(np.uint8) * 255))
    image = image.convert(mode)
    of_colour = {"transparency": image.getpixel((0, 0))} if mode in ("P", "RGB") else {}
    file = io.BytesIO()
    image.save(file, format, **of_colour)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_could_be_transparent_and_is_not_is_read(folder, mode):
    """Many programs save every image so."""
    for path in folder.rglob("*.png"):
        Image.open(path).convert(mode).save(path)
    assert load(f"folder:{folder}").train_x.shape == (15, 3, 5, 6)


@pytest.mark.parametrize("what", UNSEEN)
def test_colours_that_would_be_lost_unseen_are_refused_wherever_images_lie(folder, hub, what):
    pair = (COLOURED[0], COLOURED[0].transpose(1, 0, 2))
    high, wide = ({"bytes": with_a_hole(pixels, *UNSEEN[what]), "path": None} for pixels in pair)
    (folder / "test" / "bee" / "1.png").write_bytes(wide["bytes"])
    for name, where in ((f"folder:{folder}", "bee/1.png"), (hub(with_another(high)), "the image in row 4")):
        with pytest.raises(DataError, match=f"{where} has {what}.; convert all to RGB or grey"):
            load(name)


def damage(path, how):
    if how == "text":
        path.write_text("no image")
    elif how == "cut":
        Image.fromarray(RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:70])
    elif how == "small":
        Image.new("RGB", (3, 3)).save(path)
    elif how == "deep":
        Image.fromarray(np.zeros((5, 6), np.uint16)).save(path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("text", "bee/1.png is no image, or truncated or corrupt"),
        ("cut", "bee/1.png is no image, or truncated or corrupt"),
        ("small", "bee/1.png is 3x3, most images are 6x5"),
        ("deep", "bee/1.png has more than 8 bits a channel"),
    ],
)
@pytest.mark.parametrize("from_disk", [False, True])
def test_an_image_that_cannot_be_is_named(folder, how, message, from_disk):
    damage(folder / "test" / "bee" / "1.png", how)
    with pytest.raises(DataError, match=message) as caught:
        load(f"folder:{folder}", from_disk).test_x[3]
    assert "\n" not in str(caught.value)


def test_folders_that_do_not_belong_together_are_named(folder):
    for path in (folder / "test" / "cow").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="valid file for the classes cow"):
        load(f"folder:{folder}")
    (folder / "test" / "cow").rmdir()
    with pytest.raises(DataError, match=r"test has no folder cow, but .*train has one"):
        load(f"folder:{folder}")
    (folder / "test").rename(folder / "val")
    with pytest.raises(DataError, match=r"test: there is no such folder; images are looked for in .*/train/CLASS and"):
        load(f"folder:{folder}")


# --- functions --------------------------------------------------------------------------------------------------------

FUNCTIONS = """
from dataclasses import replace
import numpy as np
import torch
from engrams.benchmarks.data.images import ImageData

x, y = np.arange(120, dtype=np.uint8).reshape(6, 4, 5), np.arange(6) % 2

def four(): return x, y, x, y
def lists(): return x.tolist(), y.tolist(), x.tolist(), y.tolist()
def tensors(): return torch.rand(6, 8), torch.from_numpy(y), torch.rand(6, 8), torch.from_numpy(y)
def image_data():
    many = torch.rand(6, 4, 2, 2)
    return ImageData(many, torch.from_numpy(y), many, torch.from_numpy(y))
def standardised(): return replace(image_data(), standardise=True)
def whitened(): return replace(image_data(), black=torch.ones(()))
def three(): return x, y, x
def fails():
    return 1 / 0
def seeds():
    torch.manual_seed(3)
    return tensors()
def unseeded(): return np.random.default_rng().permutation(x), y, x, y
def ragged(): return [[1], [2, 3]], y, x, y
number = 3
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    datasets.load.cache_clear()
    return lambda name: f"{tmp_path}/mine.py:{name}"


def test_a_function_returns_arrays_or_image_data(functions):
    data = load(functions("four"))
    assert data.train_x.shape == (6, 1, 4, 5)
    assert data.train_x.flatten().tolist() == list(range(120))
    assert load(functions("tensors")).vectors
    assert load(functions("image_data")).train_x.shape == (6, 4, 2, 2), "any number of channels, second"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lists", "its first array is int64; images are uint8"),
        ("three", "returns a tuple; it has to return an ImageData, or four arrays"),
        ("fails", r"fails in .*mine.py, line 19: ZeroDivisionError: division by zero"),
        ("standardised", "standardise or black set, .*: leave them out, and write images = . standardise ="),
        ("whitened", "standardise or black set, .*, or images.mean and images.std, there"),
        ("ragged", "NumPy cannot make an array of"),
        ("number", "is no function but a int"),
        ("for", "mine.py has no 'for'.*did you mean 'four'"),
    ],
)
def test_a_function_that_cannot_be_is_one_line(functions, name, message):
    with pytest.raises(DataError, match=message) as caught:
        load(functions(name))
    assert "\n" not in str(caught.value)


def test_what_a_function_draws_is_the_same_in_every_run_and_nothing_of_the_runs(functions):
    torch.manual_seed(0)
    expected = torch.rand(3)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        datasets.load.cache_clear()
        found.append(load(functions("tensors")).train_x)
        load(functions("seeds"))
        assert torch.equal(torch.rand(3), expected) == (seed == 0)
    assert torch.equal(*found)
    datasets.check(functions("tensors"), False)
    with pytest.raises(DataError, match="unseeded returns other data whenever it is called, and every run would learn"):
        datasets.check(functions("unseeded"), False)


def test_an_unknown_name_says_how_ones_own_are_named():
    with pytest.raises(DataError, match=r"called 'minst'; did you mean 'mnist'\? .*npz:path, folder:path"):
        load("minst")


# --- Parquet ----------------------------------------------------------------------------------------------------------


def encoded(pixels, format="PNG", mode=None, **how):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image.convert(mode or image.mode).save(file, format=format, **how)
    return {"bytes": file.getvalue(), "path": "x.png"}


COLOURED = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)


@pytest.fixture
def hub(tmp_path):
    """Writes a folder of Parquet files, one table a split; returns the data set's name."""

    def save(train=None, test=None, folder="hub"):
        columns = {"image": [encoded(x) for x in COLOURED], "label": LABELS}
        first = {name: values[:12] for name, values in columns.items()}
        (tmp_path / folder / "data").mkdir(parents=True, exist_ok=True)
        for split, changes in (("train", train), ("test", test)):
            table = {**(columns if split == "train" else first), **(changes or {})}
            table = {name: values for name, values in table.items() if values is not None}
            path = tmp_path / folder / "data" / f"{split}-00000-of-00001.parquet"
            parquet.write_table(pyarrow.table(table), path)
        datasets.load.cache_clear()
        return f"parquet:{tmp_path / folder}"

    return save


@pytest.mark.parametrize("from_disk", [False, True])
def test_a_folder_of_parquet_files_as_the_hub_has_them(hub, from_disk):
    data = load(hub(), from_disk)
    images = torch.stack([data.train_x[n] for n in range(30)])
    assert torch.equal(images, torch.from_numpy(COLOURED).permute(0, 3, 1, 2))
    assert (data.train_y.tolist(), data.test_y.tolist()) == (LABELS.tolist(), LABELS[:12].tolist())
    assert isinstance(data.train_x, ImagesOnDisk) == from_disk


@pytest.mark.parametrize("from_disk", [False, True])
def test_an_image_in_parquet_files_is_turned_upright(hub, from_disk):
    images = [on_its_side(x) if n % 3 else encoded(x) for n, x in enumerate(COLOURED)]
    data = load(hub({"image": images}), from_disk)
    images = torch.stack([data.train_x[n] for n in range(30)])
    assert torch.equal(images, torch.from_numpy(COLOURED).permute(0, 3, 1, 2))


@pytest.mark.parametrize("how", ["JPEG", "WEBP", "TIFF", "PNG", "no orientation", "broken"])
def test_images_of_all_formats_have_the_size_that_is_said_of_them(how):
    format = how if how.isupper() else "JPEG"
    image = on_its_side(COLOURED[0], 1 if how == "no orientation" else 6, format)
    if how == "broken":
        image = encoded(COLOURED[0], "JPEG", exif=b"Exif\0\0no TIFF, nor anything else")
    opened = Image.open(io.BytesIO(image["bytes"]))
    size = upright_size(opened)
    assert size == upright(opened).convert("RGB").size == ((6, 5) if how == "no orientation" else (5, 6))


@pytest.mark.parametrize("others", [["train"], ["train", "train_extra"], ["train_more"]])
def test_a_whole_beside_its_parts_is_not_read_twice(hub, tmp_path, others):
    name = hub()
    folder = tmp_path / "hub" / "data"
    part = folder / "train-00000-of-00001.parquet"
    for other in others:
        (folder / f"{other}.parquet").write_bytes(part.read_bytes())
    if len(others) > 1:
        part.unlink()
    for what in (load, fingerprint):
        with pytest.raises(DataError, match=r"data: train.*.parquet would all be read as one split; leave"):
            what(name)


def test_classes_of_other_names_are_refused(hub, tmp_path):
    name = hub()
    folder = tmp_path / "hub" / "data"

    def called(split, *names):
        path = folder / f"{split}.parquet"
        table = parquet.read_table(path)
        features = {"label": {"_type": "ClassLabel", "names": list(names)}}
        told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        parquet.write_table(table.replace_schema_metadata(told), path)
        datasets.load.cache_clear()

    called("train-00000-of-00001", "cat", "dog", "owl")
    called("test-00000-of-00001", "cat", "dog", "owl")
    assert load(name).classes == 3
    called("test-00000-of-00001", "cat", "owl", "dog")
    with pytest.raises(DataError, match="class 1 is called dog in the training data and owl in the test data"):
        load(name)
    called("test-00000-of-00001", "cat", "dog", "owl")
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")
    (folder / "train-00001-of-00002.parquet").write_bytes((folder / "train-00000-of-00002.parquet").read_bytes())
    called("train-00001-of-00002", "dog", "cat", "owl")
    with pytest.raises(DataError, match=r"train-00001-of-00002.parquet: its classes are called \['dog'"):
        load(name)


def test_a_split_of_several_files_and_one_called_validation(hub, tmp_path):
    name = hub()
    folder = tmp_path / "hub" / "data"
    whole = parquet.read_table(folder / "train-00000-of-00001.parquet")
    for part in (0, 1):
        parquet.write_table(whole.slice(20 * part, 20), folder / f"train-0000{part}-of-00002.parquet")
    (folder / "train-00000-of-00001.parquet").unlink()
    (folder / "test-00000-of-00001.parquet").rename(folder / "validation.parquet")
    data = load(name)
    assert torch.equal(data.train_x, torch.from_numpy(COLOURED).permute(0, 3, 1, 2))
    assert len(data.test_y) == 12


@pytest.mark.parametrize("place", ["", "default"])
def test_a_folder_for_each_split_as_the_hub_itself_lays_them_out(hub, tmp_path, place):
    name = hub()
    for split in ("train", "test"):
        old = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"
        new = tmp_path / "hub" / place / split
        new.mkdir(parents=True)
        whole = parquet.read_table(old)
        for part in (0, 1, 2):
            parquet.write_table(whole.slice(part * len(whole) // 3, len(whole) // 3), new / f"000{part}.parquet")
        old.unlink()
    data = load(name)
    assert (data.train_y.tolist(), data.test_y.tolist()) == (LABELS.tolist(), LABELS[:12].tolist())
    fingerprint(name)
    (tmp_path / "hub" / place / "test" / "0001.parquet").unlink()
    datasets.load.cache_clear()
    with pytest.raises(DataError, match=r"test: 0001.parquet is missing before 0002.parquet"):
        load(name)


@pytest.mark.parametrize("layout", ["{}-00000-of-00001.parquet", "{}/0000.parquet"])
def test_a_configuration_has_a_folder_of_its_own(hub, tmp_path, layout):
    name = hub()
    for config in ("plain_text", "other"):
        for split in ("train", "test"):
            new = tmp_path / "hub" / config / layout.format(split)
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes((tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet").read_bytes())
    shutil.rmtree(tmp_path / "hub" / "data")
    with pytest.raises(DataError, match=r"hub has other, plain_text: name one, as in parquet:.*hub/other$"):
        load(name)
    assert load(f"{name}/plain_text").train_y.tolist() == LABELS.tolist()
    shutil.rmtree(tmp_path / "hub" / "other")
    assert load(name).train_y.tolist() == LABELS.tolist()
    assert fingerprint(name)


@pytest.mark.parametrize(("types", "fits"), [(("int64", "int32"), True), (("int64", "string"), False)])
def test_the_files_of_a_split_may_have_labels_of_other_types_of_numbers(hub, tmp_path, types, fits):
    name = hub()
    path = tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"
    whole = parquet.read_table(path)
    for part, kind in enumerate(types):
        half = whole.slice(15 * part, 15)
        half = half.set_column(1, "label", half["label"].cast(kind))
        parquet.write_table(half, path.with_name(f"train-0000{part}-of-00002.parquet"))
    path.unlink()
    if fits:
        assert load(name).train_y.tolist() == LABELS.tolist()
    else:
        with pytest.raises(DataError, match=r"have columns of other types \(.*; write them alike$"):
            load(name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00002"], "of the 2 files train-.*parquet number 1 is missing$"),
        (["train-00001-of-00003-0a1b"], "of the 3 files train-.*parquet number 0 and 1 more are missing$"),
        (["train-00000-of-00001", "train-a-00000-of-00001"], "there are train-.* and train-a-.*; leave those of one"),
    ],
)
def test_a_split_of_which_a_file_is_missing_or_too_much(hub, tmp_path, names, message):
    name = hub()
    file = tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"
    content = file.read_bytes()
    file.unlink()
    for shard in names:
        file.with_name(f"{shard}.parquet").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(name)


def test_the_column_of_the_labels_is_named_where_there_are_several(hub):
    two = {"label": None, "fine": LABELS, "coarse": LABELS % 2}
    first = {"label": None, "fine": LABELS[:12], "coarse": LABELS[:12] % 2}
    name = hub(two, first)
    with pytest.raises(DataError, match=r"which column has the labels\? .* fine, coarse; .*parquet:FOLDER#fine"):
        load(name)
    assert load(f"{name}#coarse").classes == 2
    assert load(f"{name}#fine").classes == 3
    with pytest.raises(DataError, match="no column of whole numbers called 'fien'; it has fine, coarse"):
        load(f"{name}#fien")


WORDS = np.array(["ant", "bee", "cow"])[LABELS]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"fold": LABELS % 2}, r"which column has the labels\? Those of whole numbers are fold; .*FOLDER#fold"),
        (
            {"label": WORDS, "fold": LABELS % 2},
            "the column 'label' is string, and labels are whole .*, or name .*#COLUMN",
        ),
        (
            {"Class": WORDS, "y": LABELS},
            "the column 'Class' is string, and labels are whole .*, or name .*FOLDER#COLUMN",
        ),
        ({"target": LABELS / 1}, "the column 'target' is double, and labels are whole numbers 0, 1, ...; write those$"),
        ({"fine_label": LABELS, "coarse_label": LABELS % 2}, r"whole numbers are fine_label, coarse_label; name one"),
    ],
)
def test_whole_numbers_are_not_taken_for_labels_that_they_may_not_be(hub, columns, message):
    name = hub({"label": None, **columns}, {"label": None, **{of: column[:12] for of, column in columns.items()}})
    with pytest.raises(DataError, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)
    if isinstance(columns.get("fold"), np.ndarray):
        assert load(f"{name}#fold").classes == 2


@pytest.mark.parametrize("column", ["targets", "fine_label", "Label", "y"])
def test_a_column_called_like_labels_needs_no_name(hub, column):
    name = hub(
        {"label": None, "fold": LABELS % 2, column: LABELS},
        {"label": None, "fold": LABELS[:12] % 2, column: LABELS[:12]},
    )
    assert load(name).train_y.tolist() == LABELS.tolist()


def test_truth_values_are_labels(hub):
    data = load(hub({"label": LABELS == 2}, {"label": LABELS[:12] == 2}))
    assert data.train_y.tolist() == (LABELS == 2).astype(int).tolist()


def with_another(image, place=4, count=30):
    image = image if isinstance(image, dict) else encoded(image)
    return {"image": [image if n == place else encoded(COLOURED[n]) for n in range(count)]}


@pytest.mark.parametrize("from_disk", [False, True])
@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (with_another(COLOURED[0][:4]), None, "the image in row 4 is 5x4, most are 5x6; bring all to one size"),
        (with_another(COLOURED[0][..., 0]), None, "the image in row 4 is grey, most are coloured"),
        ({"image": [{"bytes": b"no image", "path": ""}] * 30}, None, "row 0 holds no image, or a corrupt one"),
        ({"image": [{"bytes": None, "path": "a.png"}] * 30}, None, "row 0 holds no image|no column holds images"),
        ({"image": np.arange(30) / 7}, None, r"no column holds images .*; it has image, label"),
        ({"label": None}, None, "has no labels: no column of whole numbers; it has image"),
        ({"label": pyarrow.array([None, *LABELS[1:].tolist()])}, None, "1 rows have no label in the column 'label'"),
        ({"label": LABELS - 1}, None, "has the label -1"),
        (None, {"label": LABELS[:12] * 0}, "labels 1, 2 are in the training data, but not in the test data"),
        (None, {"label": LABELS[:12] + 1}, "label 3 is in the test data, but not in the training data"),
        (None, {"image": [encoded(x[:, :, 0]) for x in COLOURED[:12]]}, "training images have shape .*, test images"),
    ],
)
def test_parquet_files_that_cannot_be_are_one_line(hub, train, test, message, from_disk):
    name = hub(train, test)
    with pytest.raises(DataError, match=message) as caught:
        load(name, from_disk)
    assert str(caught.value).startswith(name.removeprefix("parquet:"))
    assert "\n" not in str(caught.value)


def test_a_parquet_file_cut_short_or_missing_is_named(hub, tmp_path):
    name = hub()
    path = tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", whole[:200] + bytes(200) + whole[400:]):
        path.write_bytes(content)
        datasets.load.cache_clear()
        with pytest.raises(
            DataError, match=r"train-00000.* (is no Parquet file, or cut short|holds no image)"
        ) as caught:
            load(name)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"there is no train\*.parquet"):
        load(name)


def test_a_changed_parquet_file_has_another_fingerprint(hub):
    name = hub()
    before = fingerprint(name)
    assert fingerprint(hub()) == before
    assert fingerprint(hub({"label": (LABELS + 1) % 3})) != before


# --- names and fingerprints -------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_folder_that_is_given(tmp_path):
    assert absolute("npz:a/b.npz", tmp_path) == f"npz:{tmp_path}/a/b.npz"
    assert absolute("folder:/a/b", tmp_path) == "folder:/a/b"
    assert absolute("npz:~/b.npz", tmp_path) == f"npz:{os.path.expanduser('~')}/b.npz"  # noqa: PTH111
    assert absolute("parquet:a/b#fine_label", tmp_path) == f"parquet:{tmp_path}/a/b#fine_label"
    assert short("parquet:/a/b#fine_label") == "parquet:b#fine_label"
    assert absolute("a/b.py:f", tmp_path) == f"{tmp_path}/a/b.py:f"
    assert absolute("a.b:f", tmp_path) == "a.b:f"
    assert absolute("mnist", tmp_path) == "mnist"
    assert [short(name) for name in ("npz:/a/b.npz", "folder:/a/b", "/a/b.py:f", "a.b:f", "mnist")] == [
        "npz:b.npz",
        "folder:b",
        "b.py:f",
        "a.b:f",
        "mnist",
    ]


def test_a_changed_file_has_another_fingerprint(saved, tmp_path):
    before = fingerprint(saved(**arrays()))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.npz").write_bytes((tmp_path / "mine.npz").read_bytes())
    assert fingerprint(f"npz:{tmp_path}/elsewhere/other.npz") == before, "wherever it lies"
    assert fingerprint(saved(**arrays(with_one_changed(IMAGES, (3, 2, 1), 7)))) != before


def test_folders_that_are_links_are_in_the_fingerprint_as_they_are_read(folder, tmp_path):
    linked = tmp_path / "linked"
    for split in ("train", "test"):
        (linked / split).mkdir(parents=True)
        for kind in ("ant", "bee", "cow"):
            (linked / split / kind).symlink_to(folder / split / kind)
    assert fingerprint(f"folder:{linked}") == fingerprint(f"folder:{folder}")
    before = fingerprint(f"folder:{linked}")
    (folder / "train" / "bee" / "1.png").write_bytes((folder / "train" / "cow" / "1.png").read_bytes())
    assert fingerprint(f"folder:{linked}") != before


def test_a_changed_folder_has_another_fingerprint(folder):
    before = fingerprint(f"folder:{folder}")
    count = len(load(f"folder:{folder}").train_y)
    image = folder / "train" / "bee" / "1.png"
    content = image.read_bytes()
    image.rename(folder / "train" / "cow" / "7.png")
    moved = fingerprint(f"folder:{folder}")
    image.write_bytes(content)
    added = fingerprint(f"folder:{folder}")
    (folder / "train" / "cow" / "7.png").unlink()
    assert fingerprint(f"folder:{folder}") == before
    assert len({before, moved, added}) == 3
    (folder / "README").write_text("beside the images")
    (folder / "train" / "bee" / ".DS_Store").write_text("of a desktop")
    (folder / "train" / "bee" / "._1.png").write_bytes(b"of a desktop, too")
    for hidden in ("train/.ipynb_checkpoints", "train/bee/.cache", "test/.thumbnails"):
        (folder / hidden).mkdir()
        (folder / hidden / "1.png").write_bytes(content)
    assert len(load(f"folder:{folder}").train_y) == count, "nor are hidden files read"
    assert fingerprint(f"folder:{folder}") == before
