"""What a generator remembers: the classifier that tells, the record, the picture, the tables."""

import json

import pytest
import torch
from PIL import Image

from engrams.benchmarks.data.streams import prepared
from engrams.benchmarks.judging import real_classifier
from engrams.benchmarks.judging.observer import JUDGED, GeneratorObserver, classifier_for
from engrams.benchmarks.judging.real_classifier import real_classifier as classifier_of
from engrams.benchmarks.protocols import registry as protocol
from engrams.reports import store
from engrams.reports.pages import class_shares, privacy
from engrams.strategies.generators import ImageSpec, PastImages
from tests.test_runs import engrams
from tests.test_tables import record

pytestmark = pytest.mark.slow
DIGITS = protocol.get("split-digits/class")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the classifier is kept."""
    return tmp_path_factory.mktemp("runs") / "classifiers"


def test_the_classifier_knows_real_digits(kept):
    classifier = classifier_of("digits", DIGITS.images, kept)
    data = prepared("digits", DIGITS.images)
    right = (classifier.classify(data.test_x) == data.test_y).double().mean().item()
    assert classifier.accuracy == pytest.approx(right)
    assert right > 0.97


def test_the_classifier_is_trained_once_and_found_again(kept, monkeypatch):
    before = classifier_of("digits", DIGITS.images, kept).network.state_dict()
    (file,) = kept.glob("*.pt")
    classifier_of.cache_clear()
    monkeypatch.setattr(real_classifier, "train_classifier", lambda *_: pytest.fail("trained again"))
    for name, value in classifier_of("digits", DIGITS.images, kept).network.state_dict().items():
        assert torch.equal(value, before[name])
    assert list(kept.glob("*.pt")) == [file]


def test_a_classifier_that_was_cut_short_is_trained_again(kept):
    accuracy = classifier_of("digits", DIGITS.images, kept).accuracy
    (file,) = kept.glob("*.pt")
    file.write_bytes(file.read_bytes()[:1000])
    classifier_of.cache_clear()
    assert classifier_of("digits", DIGITS.images, kept).accuracy == accuracy


def test_it_takes_no_random_number_from_the_run(kept):
    classifier_of.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    classifier_of("digits", DIGITS.images, kept)
    assert torch.equal(torch.rand(2), expected)


class Scholar:
    """All that is looked at of a strategy."""

    def __init__(self, generator):
        self.generator = generator


def test_shares_of_real_images_are_their_labels(kept, monkeypatch, tmp_path):
    """A generator that shows only real threes and, a quarter of the time, fives."""
    monkeypatch.setattr("engrams.benchmarks.judging.observer.DeepGenerativeReplay", Scholar)
    data = prepared("digits", DIGITS.images)
    past = PastImages(ImageSpec((1, 8, 8)), seed=0)
    list(past.learn(data.train_x[data.train_y == 3]))
    list(past.learn(data.train_x[data.train_y == 5], past.sample, r=0.25))
    seen = GeneratorObserver(DIGITS, classifier_for(DIGITS, "cpu", kept.parent), "a title", tmp_path)
    seen.after_experience(Scholar(past), [], {})
    (shares,) = seen.class_shares
    assert shares[3] == pytest.approx(0.75, abs=0.03)
    assert shares[5] == pytest.approx(0.25, abs=0.03)
    assert sum(shares) == pytest.approx(1)
    assert all(round(share * JUDGED) == pytest.approx(share * JUDGED) for share in shares)


def test_looking_changes_nothing(kept, monkeypatch, tmp_path):
    monkeypatch.setattr("engrams.benchmarks.judging.observer.DeepGenerativeReplay", Scholar)
    generators = []
    for look in (True, False):
        past = PastImages(ImageSpec((1, 8, 8)), seed=0)
        list(past.learn(prepared("digits", DIGITS.images).train_x))
        torch.manual_seed(0)
        if look:
            observer = GeneratorObserver(DIGITS, classifier_for(DIGITS, "cpu", kept.parent), "a title", tmp_path)
            observer.after_experience(Scholar(past), [], {})
        generators.append((past.sample(5), torch.rand(2)))
    assert all(torch.equal(a, b) for a, b in zip(*generators, strict=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    done = engrams(
        "run", "split-digits/class", "exact-replay", "noise-replay", "--seeds", "1", "--out", out, "--wandb", "disabled"
    )
    assert done.returncode == 0, done.stderr
    assert "what the generators remember" in done.stdout
    return out


def test_a_run_leaves_the_shares_and_the_picture(runs):
    folder = runs / "split-digits" / "class" / "exact-replay" / "0"
    written = json.loads((folder / store.RECORD).read_text())["generated"]
    assert written["classifier_accuracy"] > 0.97
    shares = torch.tensor(written["class_shares"])
    assert shares.shape == (5, 10)
    for t, row in enumerate(shares):  # of the classes met so far, about as much each
        met = 2 * (t + 1)
        assert row[:met].min() > 0.6 / met, row
        assert row[met:].sum() < 0.1, row
    with Image.open(folder / "generated.png") as picture:
        assert picture.width > 800
        assert picture.convert("L").getextrema() == (0, 255)


def test_what_is_given_away_has_two_ends(runs):
    """Exact replay shows what it was trained on; noise shows nothing."""
    exact, noise = (
        store.read(runs / "split-digits" / "class" / name / "0" / store.RECORD).generated
        for name in ("exact-replay", "noise-replay")
    )
    for space in ("pixels", "features"):
        assert getattr(exact.privacy, space).copying_interval[1] < -5
        assert getattr(noise.privacy, space).copying_interval[0] > 3
    assert exact.privacy.pixels.closer > 0.9
    assert noise.privacy.pixels.closer == 0
    assert min(exact.precision + exact.recall) > 0.75
    assert max(noise.precision) < min(exact.precision)
    assert max(noise.recall) < 0.1
    rows = privacy.compare(store.read_all(runs))
    assert [row.strategy for row in rows] == ["noise-replay", "exact-replay"], "the least copied first"
    done = engrams("table", runs, "--format", "md")
    table = done.stdout.split("what replay gives away")[1]
    assert f"{exact.privacy.pixels.copying:.1f} [" in table
    with Image.open(runs / "split-digits" / "class" / "exact-replay" / "0" / "nearest.png") as picture:
        assert picture.width > 800


def test_images_on_disk_are_refused_before_anything_is_run(tmp_path):
    done = engrams(
        "run", "split-digits/class", "naive", "exact-replay", "--seeds", 1, "--out", tmp_path, "--stream-from-disk"
    )
    assert done.returncode == 2
    assert "exact-replay learns to make images" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("record.json"))


def test_tables_of_what_is_remembered(runs):
    found = {row.strategy: row for row in class_shares.compare(store.read_all(runs))}
    assert list(found) == ["exact-replay", "noise-replay"]
    assert found["exact-replay"].least > 0.05 > found["noise-replay"].least
    done = engrams("table", runs, "--format", "md")
    assert "| exact-replay |" in done.stdout.split("what the generators remember")[1]


def test_means_over_seeds():
    records = []
    for seed, last in ((0, [0.5, 0.3, 0.2]), (1, [0.1, 0.3, 0.6])):
        one = record("dgr", seed, acc=0.5)
        one.generated = store.Generated(class_shares=[[1, 0, 0], last], classifier_accuracy=0.9)
        records.append(one)
    (row,) = class_shares.compare([*records, record("naive", 0, acc=0.5)])
    assert row.shares == pytest.approx((0.3, 0.3, 0.4))
    assert row.least == pytest.approx(0.15)
    assert row.unevenness.distance == pytest.approx((0.5 - 1 / 3 + 0.6 - 1 / 3) / 2)
    assert row.seeds == 2
