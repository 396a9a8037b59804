"""One Gaussian a class: its statistics against NumPy's on all data at once, its samples against their law."""

import io

import numpy as np
import pytest
import torch
from avalanche.models import SimpleMLP, as_multitask
from torch import nn

from engrams.benchmarks.data.streams import make_benchmark, prepared
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import run_of
from engrams.benchmarks.protocols import registry
from engrams.strategies import DeepGenerativeReplay
from engrams.strategies.generators import ClassGaussians, ImageSpec
from engrams.strategies.heads import TaskClasses
from tests.test_ewc import quiet

VECTORS = ImageSpec((5,), low=-torch.inf, high=torch.inf)


def samples(n=600, classes=4, values=5, seed=0):
    """Correlated values of classes of unequal size, of large means: where rounding would show."""
    random = np.random.default_rng(seed)
    y = random.choice(classes, n, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    mixing = random.normal(size=(values, values))
    x = random.normal(size=(n, values)) @ mixing + 100 * random.normal(size=(classes, values))[y]
    return torch.tensor(x), torch.tensor(y)


def learned(x, y, *cuts, **options):
    generator = ClassGaussians(VECTORS, seed=0, **options)
    for part_x, part_y in zip(x.tensor_split(cuts), y.tensor_split(cuts), strict=True):
        list(generator.learn(part_x, labels=part_y))
    return generator


@pytest.mark.parametrize("covariance", ["shared", "diagonal"])
def test_ten_experiences_leave_the_statistics_of_all_data_at_once(covariance):
    """Classes come back in later experiences, and begin anywhere."""
    x, y = samples()
    generator = learned(x, y, 3, 50, 51, 140, 200, 333, 400, 480, 599, covariance=covariance)
    assert sorted(generator.known) == [0, 1, 2, 3]
    for row, label in enumerate(generator.known):
        mine = x[y == label].numpy()
        assert generator.counts[row] == len(mine)
        np.testing.assert_allclose(generator.means[row], mine.mean(0), rtol=1e-12)
        if covariance == "diagonal":
            np.testing.assert_allclose(generator.scatter[row], len(mine) * mine.var(0), rtol=1e-10)
    if covariance == "shared":
        within = sum((y == c).sum().item() * np.cov(x[y == c].T, bias=True) for c in range(4))
        np.testing.assert_allclose(generator.scatter, within, rtol=1e-10, atol=1e-9)


def empirical(generator, n=400_000):
    x, y = generator.sample_labelled(n)
    x = x.double()
    means = torch.stack([x[y == c].mean(0) for c in range(4)])
    return torch.cov((x - means[y]).T), means, y


def test_samples_have_the_means_the_covariance_and_the_shares_of_the_classes():
    x, y = samples()
    wanted = sum((y == c).sum().item() * np.cov(x[y == c].T, bias=True) for c in range(4)) / (600 - 4)
    covariance, means, labels = empirical(learned(x, y, shrinkage=0.0))
    scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert np.abs((covariance.numpy() - wanted) / scale).max() < 0.01
    for c in range(4):
        assert (means[c] - x[y == c].mean(0)).abs().max() < 0.1
        assert (labels == c).double().mean().item() == pytest.approx((y == c).double().mean().item(), abs=0.005)


def test_with_a_diagonal_covariance_each_class_has_its_own_variances():
    x, y = samples()
    generator = learned(x, y, covariance="diagonal", shrinkage=0.0)
    made, labels = generator.sample_labelled(200_000)
    assert len(generator.counts) == len(generator.means) == len(generator.scatter) == 4
    for label in range(4):
        mine, real = made[labels == label].double(), x[y == label]
        torch.testing.assert_close(mine.mean(0), real.mean(0), rtol=1e-3, atol=0.05)
        torch.testing.assert_close(mine.var(0), real.var(0, correction=0), rtol=0.05, atol=0)
        correlation = torch.corrcoef(mine.T) - torch.eye(5)
        assert correlation.abs().max() < 0.03


def test_shrinking_goes_towards_the_mean_variance_and_keeps_their_sum():
    x, y = samples()
    plain = learned(x, y, shrinkage=0.0)
    within = (plain.scatter / (600 - 4)).numpy()
    target = np.trace(within) / 5 * np.eye(5)
    for shrinkage in (0.3, 1.0):
        root = learned(x, y, shrinkage=shrinkage)._square_root().double().numpy()
        np.testing.assert_allclose(root.T @ root, (1 - shrinkage) * within + shrinkage * target, rtol=1e-4, atol=1e-4)
    variances = np.stack([x[y == c].numpy().var(0) for c in range(4)])
    generator = learned(x, y, shrinkage=0.3, covariance="diagonal")
    got = generator._square_root().square()[np.argsort(generator.known)]
    np.testing.assert_allclose(got, 0.7 * variances + 0.3 * variances.mean(1, keepdims=True), rtol=1e-4)


def test_a_low_rank_keeps_the_leading_directions_and_one_variance_for_the_rest():
    """Tipping & Bishop 1999: C = W W^T + sigma^2 I, with sigma^2 the mean of the eigenvalues left out."""
    x, y = samples()
    within = (learned(x, y).scatter / (600 - 4)).numpy()
    values, directions = np.linalg.eigh(within)
    rest = values[:3].mean()
    wanted = rest * np.eye(5) + directions[:, 3:] @ np.diag(values[3:] - rest) @ directions[:, 3:].T
    root = learned(x, y, shrinkage=0.0, rank=2)._square_root().double().numpy()
    np.testing.assert_allclose(root.T @ root, wanted, rtol=1e-4, atol=1e-4)


def test_a_class_of_one_sample_and_constant_values_are_no_trouble():
    generator = ClassGaussians(ImageSpec((1, 2, 2), low=0.0, high=1.0), seed=0)
    list(generator.learn(torch.full((1, 1, 2, 2), 0.5), labels=torch.tensor([7])))
    x, labels = generator.sample_labelled(10)
    assert (x == 0.5).all()
    assert (labels == 7).all()
    assert [len(part) for part in generator.sample_labelled(0)] == [0, 0]
    with pytest.raises(ValueError, match="n must be at least 0; got -1"):
        generator.sample_labelled(-1)
    assert generator.sample(0).shape == (0, 1, 2, 2)


def test_of_two_samples_the_covariance_is_along_what_lies_between_them():
    x = samples()[0][:2]
    root = learned(x, torch.zeros(2, dtype=torch.int64), shrinkage=0.0)._square_root().double().numpy()
    np.testing.assert_allclose(root.T @ root, np.cov(x.T), rtol=1e-3, atol=1e-4)


def test_samples_are_counted_exactly_however_many():
    x, y = samples()
    generator = learned(x, y)
    generator.counts += 2**24
    list(generator.learn(x[:1], labels=y[:1]))
    assert generator.counts.sum().item() == 4 * 2**24 + 601


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been():
    x, y = samples()
    one, other = learned(x[:300], y[:300]), ClassGaussians(VECTORS, seed=5)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for generator in (one, other):
        list(generator.learn(x[300:], labels=y[300:]))
    assert torch.equal(one.sample(20), other.sample(20))


@pytest.mark.parametrize("covariance", ["shared", "diagonal"])
def test_what_another_was_loaded_from_stays_as_it_was(covariance):
    x, y = samples()
    one, other = learned(x, y, covariance=covariance), ClassGaussians(VECTORS, covariance=covariance)
    other.load_state_dict(one.state_dict())
    before = [kept.clone() for kept in (one.counts, one.means, one.scatter)]
    list(other.learn(x + 1000, labels=y))
    for kept, expected in zip((one.counts, one.means, one.scatter), before, strict=True):
        assert torch.equal(kept, expected)


def test_in_double_precision_all_of_it_is_drawn_so():
    generator = learned(*samples()).double()
    x = generator.sample(3)
    assert x.dtype == torch.float64
    assert not torch.equal(x, x.float().double())
    assert generator.sample(0).shape == (0, 5)


def test_a_frozen_copy_stays_as_it_was():
    x, y = samples()
    generator = learned(x, y)
    copied = generator.frozen_copy()
    list(generator.learn(x[:5] + 1000, labels=torch.full((5,), 9)))
    assert copied.known == [label for label in generator.known if label != 9]
    assert copied.counts.sum() == 600
    assert copied.sample(1000).max() < 900


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": "full"}, "covariance must be one of shared, diagonal; got 'full'"),
        ({"shrinkage": 1.1}, "shrinkage must be in"),
        ({"shrinkage": float("nan")}, "shrinkage must be in"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": 2, "covariance": "diagonal"}, "no directions to leave out"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClassGaussians(VECTORS, **options)


def test_what_cannot_be_learned_is_refused():
    generator = ClassGaussians(VECTORS)
    with pytest.raises(ValueError, match="must have been learned"):
        generator.sample(1)
    with pytest.raises(ValueError, match="needs the classes"):
        list(generator.learn(torch.zeros(2, 5)))
    with pytest.raises(ValueError, match="no finite numbers"):
        list(generator.learn(torch.full((2, 5), torch.nan), labels=torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"promises images of shape \(5,\)"):
        list(generator.learn(torch.zeros(2, 6), labels=torch.zeros(2, dtype=torch.int64)))


# --- as a memory ------------------------------------------------------------------------------------------------------


def test_classes_of_several_tasks_are_told_apart():
    numbers = TaskClasses()
    first = numbers.numbered(torch.tensor([0, 0, 0]), torch.tensor([1, 0, 1]))
    second = numbers.numbered(torch.tensor([1, 1, 0]), torch.tensor([0, 1, 1]))
    assert len({*first.tolist(), *second.tolist()}) == 4
    assert first[0] == first[2] == second[2]
    tasks, classes = numbers.told_apart(torch.cat([first, second]))
    assert tasks.tolist() == [0, 0, 0, 1, 1, 0]
    assert classes.tolist() == [1, 0, 1, 0, 1, 1]
    assert numbers.pairs == [(0, 0), (0, 1), (1, 0), (1, 1)], "each once"


def test_under_several_heads_a_class_is_replayed_under_its_own():
    """Class 0 of a task is another one than class 0 of the next: asked for, each comes back with its task."""
    protocol = registry.get("split-digits/task")
    benchmark = make_benchmark(
        prepared(protocol.dataset, protocol.images), protocol.stream, protocol.scenario, "test", 0
    )
    model = as_multitask(SimpleMLP(num_classes=2, input_size=64, hidden_size=100, drop_rate=0), "classifier")
    strategy = DeepGenerativeReplay(
        generator=ClassGaussians(ImageSpec((1, 8, 8), low=-torch.inf, high=torch.inf), seed=0),
        replay_labels="asked",
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=2,
        evaluator=quiet(),
    )
    for experience in benchmark.train_stream[:3]:
        strategy.train(experience)
    pairs = strategy._task_classes.pairs
    assert sorted(pairs) == [(task, class_) for task in range(3) for class_ in range(2)]
    x, answers, tasks = next(strategy._replayed())
    generator = strategy.previous.generator
    for number, (task, class_) in enumerate(pairs):
        mine = (tasks == task) & (answers == class_)
        distances = (x[mine].flatten(1).double()[:, None] - generator.means).norm(dim=2)
        assert (distances.argmin(1) == number).double().mean() > 0.8


@pytest.mark.parametrize(("name", "floor"), [("split-digits/class", 0.85), ("split-digits/task", 0.97)])
def test_replay_of_gaussians_keeps_the_past(tmp_path, name, floor):
    record = execute(run_of(registry.get(name), "dgr-gaussian"), tmp_path, "cpu", "disabled", lambda epochs: None)
    assert record.complete, record.reason
    assert record.acc > floor
