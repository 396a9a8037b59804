"""Avalanche's streaming LDA beside the sums it stands for, and beside Avalanche's nearest-mean classifier."""

import numpy as np
import pytest
import torch
from avalanche.models import NCMClassifier, SimpleMLP, as_multitask
from avalanche.training.supervised import StreamingLDA
from torch import nn

from engrams.benchmarks.data.images import ImageData
from engrams.benchmarks.data.loading import InMemoryLoading
from engrams.benchmarks.data.streams import make_benchmark
from engrams.strategies.avalanche.streaming_lda import InputStreamingLDA
from tests.test_streams import split

VALUES, CLASSES = 5, 6
RANDOM = np.random.default_rng(3)
CENTRES = RANDOM.normal(0, 2, (CLASSES, VALUES))  # some near 0, where the mean of a class not met is


def vectors(count):
    y = RANDOM.integers(0, CLASSES, count)
    x = CENTRES[y] + RANDOM.normal(size=(count, VALUES)) @ np.diag([3, 1, 1, 0.3, 0.1])
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


DATA = ImageData(*vectors(240), *vectors(120))
STREAM = split("class")


class Seen(InMemoryLoading):
    """Keeps what was learned, in order."""

    def __init__(self):
        super().__init__()
        self.samples = []
        self.began = 0

    def before_training_iteration(self, strategy, **kwargs):
        super().before_training_iteration(strategy, **kwargs)
        self.began += len(strategy.mb_y)

    def after_training_iteration(self, strategy, **kwargs):
        super().after_training_iteration(strategy, **kwargs)
        assert self.began == len(self.samples) + len(strategy.mb_y)
        self.samples += zip(strategy.mb_x.double().numpy(), strategy.mb_y.tolist(), strategy.mb_task_id, strict=True)


def trained(experiences=(0, 1, 2), data=DATA, **how):
    benchmark = make_benchmark(data, STREAM, "class", "test", seed=0)
    seen = Seen()
    strategy = InputStreamingLDA(
        model=SimpleMLP(CLASSES, VALUES),
        optimizer=None,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        eval_mb_size=50,
        plugins=[seen],
        **how,
    )
    strategy.eval(benchmark.test_stream)  # before anything has been learned
    for place in experiences:
        strategy.train(benchmark.train_stream[place])
    strategy.eval(benchmark.test_stream)
    return strategy, seen.samples


def scores(strategy, x):
    strategy.mbatch = [x, torch.full((len(x),), CLASSES - 1), torch.zeros(len(x))]
    return strategy.predict(x)


def test_its_means_and_its_covariance_are_those_of_hayes_and_kanan():
    """Section 3: a running mean a class; the covariance a running mean of t/(t + 1) (z - mu)(z - mu)'."""
    strategy, seen = trained(shrinkage=1e-2)
    assert len(seen) == len(DATA.train_x)
    means, counts, covariance = np.zeros((CLASSES, VALUES)), np.zeros(CLASSES), np.ones((VALUES, VALUES))
    for t, (z, y, _) in enumerate(seen):
        off = z - means[y]
        covariance = (t * covariance + t / (t + 1) * np.outer(off, off)) / (t + 1)
        means[y] += off / (counts[y] + 1)
        counts[y] += 1
    np.testing.assert_allclose(strategy.muK, means, rtol=1e-4)
    np.testing.assert_allclose(strategy.Sigma, covariance, rtol=1e-3, atol=1e-4)
    precision = np.linalg.inv(0.99 * covariance + 0.01 * np.eye(VALUES))
    x = DATA.test_x.double().numpy()
    expected = x @ precision @ means.T - 0.5 * np.einsum("kd,de,ke->k", means, precision, means)
    np.testing.assert_allclose(scores(strategy, DATA.test_x), expected, rtol=1e-2, atol=0.05)


def test_it_learns_a_minibatch_as_avalanche_does_one_sample_after_another():
    strategy, seen = trained(shrinkage=1e-2)
    avalanches = StreamingLDA(
        slda_model=nn.Flatten(), criterion=nn.CrossEntropyLoss(), input_size=VALUES, num_classes=CLASSES
    )
    for x, y, _ in seen:
        avalanches.fit(torch.tensor(x).float().unsqueeze(0), torch.tensor([y]))
    for name in ("muK", "Sigma", "cK"):
        torch.testing.assert_close(getattr(strategy, name), getattr(avalanches, name), rtol=1e-4, atol=1e-4)
    assert strategy.num_updates == avalanches.num_updates == len(seen)


def test_with_all_shrinkage_it_answers_with_the_nearest_mean():
    strategy, seen = trained(shrinkage=1.0, streaming_covariance=False)
    nearest = NCMClassifier(normalize=False)
    nearest.update_class_means_dict(
        {y: torch.tensor(np.mean([x for x, of, _ in seen if of == y], axis=0)).float() for y in range(CLASSES)}
    )
    assert torch.equal(scores(strategy, DATA.test_x).argmax(1), nearest(DATA.test_x).argmax(1))
    assert (strategy.Sigma == 1).all(), "as it began"


def test_a_class_of_one_sample_is_answered():
    x = DATA.test_x[[int((DATA.test_y == label).nonzero()[0]) for label in range(CLASSES)]]
    strategy, _ = trained(data=ImageData(x, torch.arange(CLASSES), x, torch.arange(CLASSES)), shrinkage=1.0)
    assert scores(strategy, x).argmax(1).tolist() == list(range(CLASSES))


def test_what_is_learned_from_has_no_part_in_what_is_kept():
    strategy, _ = trained(shrinkage=1e-2)
    strategy.fit(DATA.test_x.clone().requires_grad_(), DATA.test_y)
    assert not (strategy.muK.requires_grad)
    assert not (strategy.Sigma.requires_grad)


@pytest.mark.parametrize(
    ("experiences", "met"), [([0], {0, 1}), ([0, 2], {0, 1, 4, 5}), ([0, 0, 2, 2, 0], {0, 1, 4, 5})]
)
def test_a_class_that_has_not_been_met_is_never_answered(experiences, met):
    strategy, _ = trained(experiences, shrinkage=1.0, streaming_covariance=False)
    found = scores(strategy, DATA.test_x)
    assert found.shape == (len(DATA.test_x), CLASSES)
    assert set(found.argmax(1).tolist()) == met
    for label in set(range(CLASSES)) - met:
        torch.testing.assert_close(found[:, label], found[:, sorted(met)].amin(1) - 1)


def test_it_refuses_a_head_a_task():
    with pytest.raises(ValueError, match="no task-incremental stream"):
        InputStreamingLDA(
            model=as_multitask(SimpleMLP(2, VALUES), "classifier"),
            optimizer=None,
            criterion=nn.CrossEntropyLoss(),
            shrinkage=1e-4,
        )
