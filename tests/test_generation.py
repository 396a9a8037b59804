"""A generator that is judged itself: the accuracy matrix, the distance, the pictures, the record, the tables."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from PIL import Image
from scipy import linalg

from engrams.benchmarks.data.streams import make_benchmark, prepared
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import run_of
from engrams.benchmarks.judging import generation as generation_of_a_run
from engrams.benchmarks.judging.generation import SHOWN, GenerationObserver
from engrams.benchmarks.judging.observer import CLASSIFIERS, classifier_for
from engrams.benchmarks.judging.quality import features_of, frechet_distance
from engrams.benchmarks.protocols import registry as protocol
from engrams.benchmarks.training.build import make_strategy
from engrams.reports import store
from engrams.reports.pages import generation
from engrams.strategies.generators import ACGAN, ImageSpec
from engrams.strategies.mergan import MeRGAN
from tests.test_runs import engrams
from tests.test_tables import record

pytestmark = pytest.mark.slow

DIGITS = protocol.get("generate-digits")
SMALL = DIGITS.model_copy(
    update={
        "gan": DIGITS.gan.model_copy(update={"steps": 3, "width": 4}),
        "generation": DIGITS.generation.model_copy(update={"images_per_class": 100}),
    }
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def classifier(out):
    return classifier_for(DIGITS, "cpu", out)


@pytest.fixture
def elsewhere(classifier, out, tmp_path):
    """Another folder of runs, which has the classifier already."""
    shutil.copytree(out / CLASSIFIERS, tmp_path / CLASSIFIERS)
    return tmp_path


def run(out, strategy, seed=0, first=None, **overrides):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(generation_of_a_run, "REVERSE_IMAGES_SEEN", 1000)  # how real they are is not looked at
        one = replace(run_of(SMALL, strategy, seed, overrides), first=first)
        return execute(one, out, "cpu", "disabled", lambda n: None)


QUICK = {"gan-joint": {"steps": 5}, "gan-ewc": {"fisher_samples": 32}, "gan-dgr": {"generator_epochs": 1}}


@pytest.mark.parametrize("strategy", ["mergan-jtr", "mergan-ra", "gan-finetune", "gan-ewc", "gan-dgr", "gan-joint"])
def test_every_generator_leaves_a_whole_record_and_its_pictures(out, strategy):
    """One learns all ten experiences, the others four."""
    learned = 10 if strategy in ("mergan-ra", "gan-joint") else 4
    found = run(out, strategy, first=learned, **QUICK.get(strategy, {}))
    assert found.complete, found.reason
    experiences = 1 if strategy == "gan-joint" else learned
    assert np.array(found.accuracy_matrix).shape == (experiences, learned)
    assert len(found.generated.frechet_distance) == experiences
    assert all(distance > 0 for distance in found.generated.frechet_distance)
    assert 0 <= found.generated.reverse_accuracy <= 1
    for matrix in (found.generated.frechet_by_class, found.generated.reverse_by_class):
        known = [[value is not None for value in row] for row in matrix]
        assert known == ([[True] * 10] if experiences == 1 else np.tri(learned, 10, dtype=bool).tolist())
    assert len(found.generated.precision) == len(found.generated.recall) == experiences
    assert found.generated.privacy.images == 100 * learned
    assert found.generated.classifier_accuracy > 0.97
    assert found.hyperparameters["generation"] == {"images_per_class": 100}
    assert ("gan" in found.hyperparameters) == (strategy != "gan-dgr")
    folder = out / "generate-digits" / strategy / "0"
    assert store.read(folder / "record.json") == found
    with Image.open(folder / "generated.png") as picture:
        assert picture.convert("L").getextrema()[1] == 255
    with Image.open(folder / "generated.gif") as frames:
        assert getattr(frames, "n_frames", 1) == experiences
    with Image.open(folder / "nearest.png") as picture:
        assert picture.width > 800


def test_the_same_seed_gives_the_same_result_to_the_bit(elsewhere):
    first, again = (
        run(elsewhere, "mergan-jtr", seed=3, first=3),
        run(elsewhere / "again", "mergan-jtr", seed=3, first=3),
    )
    assert (first.accuracy_matrix, first.generated) == (again.accuracy_matrix, again.generated)
    assert run(elsewhere, "mergan-jtr", seed=4, first=3).accuracy_matrix != again.accuracy_matrix


def test_a_gan_that_diverges_is_recorded_with_its_reason(elsewhere):
    found = run(elsewhere, "mergan-ra", ra_lambda=1e38)
    assert found.status == "failed"
    assert found.reason.startswith("the generator's ")
    assert "in experience 1; lower its learning rate or the penalty's lambda" in found.reason


def test_a_minibatch_too_small_for_the_classes_is_recorded_in_one_line(elsewhere):
    entry = SMALL.model_copy(update={"gan": SMALL.gan.model_copy(update={"batch_size": 8})})
    one = run_of(entry, "gan-joint", 0, QUICK["gan-joint"])
    found = execute(one, elsewhere, "cpu", "disabled", lambda n: None)
    assert found.reason == (
        "generate-digits: gan-joint: the conditional GAN's batch_size of 8 is too small for 10 classes at once, each "
        "of which must have an image in a minibatch"
    )


# --- a generator that is known ----------------------------------------------------------------------------------------


class RealDigits(ACGAN):
    """Makes real test images of the class; of class 8 those of class 3."""

    def of_class(self, label, n):
        data = prepared("digits", DIGITS.images)
        x = data.test_x[data.test_y == (3 if label == 8 else label)]
        return x[torch.randint(len(x), (n,), generator=self.random)]


@pytest.fixture(scope="module")
def known(classifier, tmp_path_factory):
    """Ten experiences of it, seen."""
    benchmark = make_benchmark(prepared("digits", DIGITS.images), DIGITS.stream, DIGITS.scenario, "test", seed=0)
    strategy = MeRGAN(
        generator=RealDigits(ImageSpec((1, 8, 8)), steps=1, width=4, classes=10),
        classifier=classifier.network,
        images_per_class=100,
        eval_mb_size=500,
        evaluator=EvaluationPlugin(),
    )
    observer = GenerationObserver(DIGITS, classifier, "a title", tmp_path_factory.mktemp("pictures"))
    for experience in benchmark.train_stream:
        strategy.train(experience)
        before = torch.random.get_rng_state(), strategy.generator.random.get_state()
        observer.after_experience(strategy, [], {})
        assert torch.equal(before[0], torch.random.get_rng_state())
        assert torch.equal(before[1], strategy.generator.random.get_state())
    return observer


def test_every_grid_has_the_same_latents_and_the_classes_so_far(known):
    assert len(known.grids) == 10
    for experience, grid in enumerate(known.grids):
        assert grid.shape == (10, SHOWN, 1, 8, 8)
        assert not grid[: experience + 1].isnan().any()
        assert grid[experience + 1 :].isnan().all()
        assert torch.equal(grid[: experience + 1], known.grids[-1][: experience + 1])
    assert torch.equal(known.grids[-1][3], known.grids[-1][8]), "in a column the latent vector is one for all classes"


@pytest.mark.parametrize("strategy", ["mergan-ra", "gan-dgr"])
def test_a_generator_that_does_not_change_is_shown_with_the_same_images(classifier, strategy, tmp_path):
    """Every grid has the same latents: what differs between two grids is what the generator has learned since."""
    benchmark = make_benchmark(prepared("digits", DIGITS.images), DIGITS.stream, DIGITS.scenario, "test", seed=0)
    entry = run_of(SMALL, strategy, 0, QUICK.get(strategy, {}))
    learner = make_strategy(entry, benchmark, "cpu", [], classifier.network)
    learner.train(benchmark.train_stream[0])
    observer = GenerationObserver(SMALL, classifier, "a title", tmp_path)
    observer.after_experience(learner, [], {})
    learner.eval(benchmark.test_stream[:3])
    observer.after_experience(learner, [], {})
    assert torch.equal(*(grid[0] for grid in observer.grids))


def test_a_class_that_is_missing_shows_in_the_distance_and_in_the_reverse_accuracy(known):
    assert known.frechet_distance[8] > 3 * known.frechet_distance[7]
    seen = known.summary()
    # 8 was never shown, and 3 under both labels: eight classes are left, and a part of one.
    assert 0.75 < seen.reverse_accuracy < 0.92
    assert seen.frechet_distance == known.frechet_distance


def test_each_class_has_its_own_figures(known):
    """Real images of every class but the 8, which is shown as the 3."""
    last, before = known.frechet_by_class[-1], known.frechet_by_class[7]
    assert last[:8] == before[:8], "what is made of a class does not change"
    assert last[8] > 5 * max(last[:8])
    reverse = known.reverse_by_class[-1]
    assert reverse[8] < 0.1
    assert min(reverse[:3]) > 0.6
    assert known.precision[7] > 0.9
    assert known.recall[7] > 0.9
    assert known.recall[8] < known.recall[7], "real eights are not made"
    given = known.summary().privacy
    assert given.pixels.to_test == 0, "it makes test images"


def test_the_frechet_distance_is_that_of_two_normals(classifier):
    data = prepared("digits", DIGITS.images)
    one, other = data.test_x[:200], data.train_x[:300] * 0.7
    with torch.no_grad():
        a, b = (classifier.network.features(x).double().numpy() for x in (one, other))
    means, covariances = [x.mean(axis=0) for x in (a, b)], [np.cov(x, rowvar=False) for x in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    features = [features_of(classifier, x) for x in (one, other)]
    assert frechet_distance(*features) == pytest.approx(expected, rel=1e-2)
    assert frechet_distance(features[0], features[0]) == pytest.approx(0, abs=1e-3 * expected)


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_table_says_how_real_it_is(elsewhere):
    run(elsewhere, "gan-joint", **QUICK["gan-joint"])
    done = engrams("table", elsewhere, "--format", "md")
    table = done.stdout.split("**generate-digits: what is generated**")[1]
    assert "| gan-joint " in table
    assert "Frechet" in table


def test_means_over_seeds():
    records = []
    for seed, (reverse, distance) in enumerate([(0.5, 2.0), (0.7, 4.0)]):
        one = record("mergan-ra", seed, acc=0.8)
        one.generated = store.Generated(
            frechet_distance=[1.0, distance], reverse_accuracy=reverse, classifier_accuracy=0.9
        )
        records.append(one)
    (row,) = generation.compare([*records, record("naive", 0, acc=0.5)])
    assert (row.reverse.mean, row.frechet.mean, row.accuracy.mean, row.seeds) == (0.6, 3.0, 0.8, 2)
    assert (row.over_the_stream, row.precision) == ({}, None), "older records"
    for one, last in zip(records, (4.0, 6.0), strict=True):
        one.generated.frechet_by_class, one.generated.precision = [[1.0, None], [last, 2.0]], [None, last / 10]
    (row,) = generation.compare(records)
    assert row.over_the_stream == {"AFQ": 3.5, "AIQ": 2.25, "FR": 4.0}
    assert (row.precision, row.recall) == (0.5, None)


GRADUAL = ("--set", "stream.boundaries=gradual", "--set", "stream.width=1.0", "--set", "training.epochs=1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("generate-digits", "ewc"),
            "ewc has not got a generator that can be asked for a class; mergan-jtr, mergan-ra and gan-* have one",
        ),
        (("split-digits/class", "gan-finetune"), "gan-finetune has not got a solver; it runs under the generate-*"),
        (("split-cifar10/class", "mergan-jtr"), "mergan-jtr needs the settings of its GAN; add a table [gan]"),
        (("split-digits/domain", "mergan-jtr"), "mergan-jtr remembers classes: every experience must bring new ones"),
        (("split-digits/task", "mergan-ra"), "mergan-ra remembers classes: every experience must bring new ones"),
        (
            ("split-digits/class", "mergan-ra", *GRADUAL),
            "mergan-ra remembers classes: every experience must bring new ones",
        ),
        (("split-digits/task", "icarl"), "as in the scenario class, or task with network.all_classes, with sharp"),
        (("split-digits/domain", "ewc+icarl"), "ewc+icarl remembers classes: every experience must bring new ones"),
        (("split-digits/class", "icarl", *GRADUAL), "icarl remembers classes: every experience must bring new ones"),
        (
            ("split-digits/task", "naive", *GRADUAL),
            "stream.boundaries = 'gradual' goes with the scenarios domain and class",
        ),
    ],
)
def test_what_cannot_be_run_is_one_line(tmp_path, arguments, message):
    done = engrams("run", *arguments, "--seeds", 1, "--out", tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# --- as the memory of a solver ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "strategy", "settings"),
    [
        ("split-digits/class", "mergan-jtr", {}),
        ("split-digits/class", "mergan-ra", {}),
        ("split-digits/task", "mergan-ra", {"network.all_classes": True}),
    ],
)
def test_as_the_memory_of_a_solver_it_leaves_the_shares_of_its_classes(elsewhere, name, strategy, settings):
    entry = protocol.get(name, settings)
    entry = entry.model_copy(update={"gan": entry.gan.model_copy(update={"steps": 5})})
    one = run_of(entry, strategy, 0)
    found = execute(one, elsewhere, "cpu", "disabled", lambda epochs: None)
    assert found.complete, found.reason
    shares = np.array(found.generated.class_shares)
    assert shares.shape == (5, 10)
    assert found.generated.frechet_distance == []
    assert found.hyperparameters["gan"]["steps"] == 5
    assert "generation" not in found.hyperparameters
