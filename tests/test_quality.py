"""What is measured of generators, each on a case whose answer is known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from engrams.benchmarks.data.streams import classes_of_experiences, make_benchmark, prepared
from engrams.benchmarks.judging import privacy
from engrams.benchmarks.judging.observer import classifier_for
from engrams.benchmarks.judging.privacy import by_class, data_copying, given_away, interval, nearest_of, nearness
from engrams.benchmarks.judging.quality import NEIGHBOURS, precision_and_recall
from engrams.benchmarks.protocols import registry
from engrams.reports import store
from engrams.reports.generators import over_the_stream, unevenness

# --- read off records -------------------------------------------------------------------------------------------------


def test_how_classes_fare_over_the_stream():
    found = over_the_stream([[2.0, None, None], [5.0, 4.0, None], [8.0, 6.0, 1.0]])
    assert found.final == pytest.approx((8 + 6 + 1) / 3)
    assert found.incremental == pytest.approx((2 + (5 + 4) / 2 + (8 + 6 + 1) / 3) / 3)
    assert found.forgetting == pytest.approx(((8 - 2) + (6 - 4)) / 2)
    at_once = over_the_stream([[1.0, 3.0]])
    assert at_once == (2.0, 2.0, None)
    assert over_the_stream([[1.0, 3.0, None], [2.0, 3.0, None]]).forgetting == pytest.approx(0.5)


def test_even_shares_are_even_and_one_class_is_not():
    assert unevenness([0.25] * 4) == (0.0, 0.0)
    assert unevenness([1.0, 0, 0, 0]) == pytest.approx((math.log(4), 0.75))
    shares = [0.5, 0.3, 0.2]
    assert unevenness(shares).divergence == pytest.approx(stats.entropy(shares, [1 / 3] * 3))
    assert unevenness(shares).distance == pytest.approx(0.5 - 1 / 3)
    # Of two classes so far; a tenth is taken for a third one.
    assert unevenness([0.45, 0.45, 0.1], [0, 1]) == pytest.approx((0.0, 0.1))
    assert unevenness([0, 0, 1.0], [0, 1]) == pytest.approx((math.log(2), 1.0))


# --- precision and recall ---------------------------------------------------------------------------------------------


def test_precision_and_recall_by_hand():
    real = torch.arange(10.0)[:, None]  # every one has its third neighbour 2 (within), or 3 (at the ends), away
    made = torch.tensor([[0.5], [4.2], [-3.0], [-3.1], [20.0], [20.1], [20.2], [20.3]])
    precision, recall = precision_and_recall(real, made)
    assert precision == 3 / 8  # -3.0 is just within reach of 0, -3.1 is not
    radii = [sorted(abs(float(a - b)) for b in made)[NEIGHBOURS] for a in made]
    within = [any(abs(float(x - a)) <= radius for a, radius in zip(made, radii, strict=True)) for x in real]
    assert recall == sum(within) / 10


def test_the_same_images_have_all_and_others_have_none():
    torch.manual_seed(0)
    real = torch.randn(200, 5)
    assert precision_and_recall(real, real) == (1.0, 1.0)
    assert precision_and_recall(real, real + 100) == (0.0, 0.0)
    half = real[real[:, 0] > 0]
    precision, recall = precision_and_recall(real, half)
    assert precision == 1.0
    assert len(half) / 200 < recall < 0.85, "what is not made is not found, but for what lies at the edge"
    assert precision_and_recall(real[:3], real) == (None, None)


# --- what is given away -----------------------------------------------------------------------------------------------


def test_the_nearest_is_found_and_its_distance_is_exact():
    torch.manual_seed(1)
    x, others = torch.randn(150, 30), torch.randn(400, 30)
    others[77] = x[3]
    distances, which = nearest_of(x, others)
    every = (x[:, None] - others[None]).double().norm(dim=2)
    assert torch.equal(which, every.argmin(dim=1))
    assert distances == pytest.approx(every.min(dim=1).values.numpy(), abs=1e-6)
    assert (which[3], distances[3]) == (77, 0.0)


def test_the_test_is_mann_and_whitneys_in_every_cell():
    random = np.random.default_rng(0)
    cells = [
        (random.normal(shift, 1, m).round(1), random.normal(0, 1, n).round(1))
        for shift, m, n in ((0.5, 40, 30), (-1, 25, 60))
    ]
    expected = 0.0
    for made, test in cells:
        u = stats.mannwhitneyu(made, test).statistic  # of the first, ties as a half
        m, n = len(made), len(test)
        expected += n / 90 * (u - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12)
    assert data_copying(cells) == pytest.approx(expected)
    low, high = interval(cells)
    assert low < data_copying(cells) < high


def test_where_both_are_alike_it_is_normal_around_zero():
    random = np.random.default_rng(1)
    found = [data_copying([tuple(random.normal(size=(2, 50))) for _ in range(4)]) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * 0.5 / math.sqrt(200), "a mean of four that are 0 ± 1"
    assert np.std(found) == pytest.approx(0.5, rel=0.2)


DIGITS = registry.get("split-digits/class")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A classifier, trained for a moment, and the data."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("engrams.benchmarks.judging.real_classifier.IMAGES_SEEN", 10_000)
        found = classifier_for(DIGITS, "cpu", tmp_path_factory.mktemp("runs"))
    return found, prepared("digits", DIGITS.images)


def looked_at(digits, made, labels, unseen):
    classifier, data = digits
    training, test = by_class(data.train_x, data.train_y, range(10)), by_class(*unseen, range(10))
    return given_away(classifier, by_class(made, labels, range(10)), training, test)


def test_copies_of_training_images_are_found(digits):
    _, data = digits
    found, nearest = looked_at(digits, data.train_x[::5], data.train_y[::5], (data.test_x, data.test_y))
    for space in (found.pixels, found.features):
        assert space.to_training == 0
        assert space.closer > 0.95, "but where a test image is a copy too"
        assert space.copying_interval[1] < -5
    assert torch.equal(nearest.generated, nearest.training)
    assert nearest.generated.shape == (privacy.SHOWN, 1, 8, 8)
    assert found.images == len(data.train_x[::5])


def test_new_real_images_are_no_copies(digits):
    _, data = digits
    found, _ = looked_at(digits, data.test_x[::2], data.test_y[::2], (data.test_x[1::2], data.test_y[1::2]))
    for space in (found.pixels, found.features):
        assert abs(space.copying) < 3 / math.sqrt(10), "of ten classes, each 0 ± 1"
        assert space.copying_interval[0] < 0 < space.copying_interval[1]
        assert space.to_training == pytest.approx(space.test_to_training, rel=0.15)
        assert space.closer < 0.2


def test_noise_is_far_from_everything(digits):
    _, data = digits
    noise = torch.rand(len(data.test_x), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found, _ = looked_at(digits, noise, data.test_y, (data.test_x, data.test_y))
    for space in (found.pixels, found.features):
        assert space.copying_interval[0] > 3
    assert found.pixels.closer == 0
    assert found.pixels.to_training > 2 * found.pixels.test_to_training


def test_some_copies_among_new_images_are_counted(digits):
    _, data = digits
    made = data.test_x[::2].clone()
    labels = data.test_y[::2]
    for index in range(0, len(made), 4):
        made[index] = data.train_x[data.train_y == labels[index]][0]
    found, _ = looked_at(digits, made, labels, (data.test_x[1::2], data.test_y[1::2]))
    assert found.pixels.closer == pytest.approx(0.25, abs=0.08)


def test_too_few_images_are_not_tested(digits):
    assert given_away(digits[0], {}, {}, {}) is None
    few = privacy.Cell(np.zeros(9), np.ones(9), np.ones(30))
    assert nearness([few]).copying is None
    assert nearness([few]).closer == 1.0


def test_which_classes_an_experience_has(digits):
    _, data = digits
    for seed in (0, 3):
        for entry in (DIGITS, registry.get("split-digits/domain")):
            stream = entry.stream.model_copy(update={"class_order": "seeded"})
            benchmark = make_benchmark(data, stream, entry.scenario, "test", seed)
            groups = classes_of_experiences(stream, 10, "test", seed)
            for experience, classes in zip(benchmark.train_stream, groups, strict=True):
                images = torch.stack([sample[0] for sample in experience.dataset])
                its_own = data.train_x[torch.isin(data.train_y, torch.tensor(classes))]
                assert torch.equal(images.sum(), its_own.sum())
                assert len(images) == len(its_own)


def test_a_record_keeps_it_all_to_the_bit(digits, tmp_path):
    from tests.test_records import record, written

    _, data = digits
    found, _ = looked_at(digits, data.test_x[::2], data.test_y[::2], (data.test_x[1::2], data.test_y[1::2]))
    made = store.Generated(
        classifier_accuracy=0.9,
        frechet_distance=[1.0, 2.0],
        frechet_by_class=[[1.0, None], [2.0, 3.0]],
        reverse_accuracy=0.5,
        reverse_by_class=[[0.5, None], [0.5, 0.6]],
        precision=[None, 0.5],
        recall=[None, 0.25],
        privacy=found,
    )
    one = record(generated=made)
    assert store.read(written(tmp_path, one)) == one
