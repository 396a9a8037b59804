"""Avalanche's iCaRL on streams that are not Avalanche's."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.models import IncrementalClassifier, NCMClassifier, SimpleMLP, as_multitask
from avalanche.training.supervised.icarl import _ICaRLPlugin
from torch.nn import functional
from torch.utils.data import TensorDataset

from engrams.benchmarks.data.loading import InMemoryLoading, TensorClassificationDataset
from engrams.strategies.avalanche.icarl import NearestMeanOfClassesMet, avalanche_icarl
from tests.test_ewc import labelled, quiet, stream

MEMORY = 12


def network(classes=6):
    """Wide enough that no sample has features of zero alone, which have no direction."""
    return SimpleMLP(num_classes=classes, input_size=6, hidden_size=50, hidden_layers=1, drop_rate=0)


def learned(experiences, model=None, mem_size=MEMORY, mirrored_means=True):
    torch.manual_seed(0)
    model = model or network()
    strategy = avalanche_icarl(
        mem_size,
        mirrored_means,
        {
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.5),
            "criterion": None,
            "train_mb_size": 10,
            "train_epochs": 2,
            "eval_mb_size": 100,
            "plugins": [InMemoryLoading()],
            "evaluator": quiet(),
        },
    )
    for experience in experiences:
        strategy.train(experience)
    strategy.model.eval()
    return strategy


def icarl(strategy):
    (plugin,) = (one for one in strategy.plugins if hasattr(one, "x_memory"))
    return plugin


def samples(experience):
    return torch.stack([x for x, *_ in experience.dataset])


def test_the_class_of_the_nearest_mean_of_exemplars_is_answered():
    experiences = stream([[4, 1], [0, 5]])
    strategy = learned(experiences)
    plugin, features = icarl(strategy), strategy.model.feature_extractor
    buffer = {labels[0]: x for x, labels in zip(plugin.x_memory, plugin.y_memory, strict=True)}
    assert {label: len(x) for label, x in buffer.items()} == dict.fromkeys([1, 4, 0, 5], MEMORY // 4)
    own = {tuple(row.tolist()) for experience in experiences for row in samples(experience)}
    assert {tuple(row.tolist()) for x in buffer.values() for row in x} <= own
    means = {
        label: functional.normalize(functional.normalize(features(x)).mean(dim=0), dim=0) for label, x in buffer.items()
    }
    x = samples(experiences[0])
    distances = {label: (functional.normalize(features(x)) - mean).norm(dim=1) for label, mean in means.items()}
    labels = torch.tensor(list(distances))
    expected = labels[torch.stack(list(distances.values())).argmin(dim=0)]
    assert strategy.model(x).argmax(dim=1).tolist() == expected.tolist()
    assert len(expected.unique()) > 1


def test_exemplars_have_the_mean_of_their_class():
    """Herding: the mean of those that it chooses comes nearer than that of as many at random."""
    (experience,) = stream([[0, 1]], samples=400)
    strategy = learned([experience], mem_size=20)
    x, y = samples(experience), torch.tensor(list(experience.dataset.targets))
    with torch.no_grad():
        of_class = functional.normalize(strategy.model.feature_extractor(x[y == 0]))
        chosen = functional.normalize(strategy.model.feature_extractor(icarl(strategy).x_memory[0]))
    assert len(chosen) == 10
    distance = (chosen.mean(dim=0) - of_class.mean(dim=0)).norm()
    at_random = [(of_class[torch.randperm(200)[:10]].mean(dim=0) - of_class.mean(dim=0)).norm() for _ in range(20)]
    assert distance < min(at_random)


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_mean_may_be_of_mirror_images_too(mirrored):
    """With them it is Avalanche's own."""
    images = [
        TensorClassificationDataset.from_tensors(torch.randn(40, 1, 2, 3), torch.arange(40) % 2 + first, 0)
        for first in (0, 2)
    ]
    experiences = labelled(benchmark_from_datasets(train=images)).train_stream
    strategy = learned(experiences, mirrored_means=mirrored)
    found = dict(strategy.model.eval_classifier.class_means_dict)
    strategy.experience = experiences[1]  # which Avalanche asks for the number of classes
    _ICaRLPlugin.compute_class_means(icarl(strategy), strategy)
    own = strategy.model.eval_classifier.class_means_dict
    assert found.keys() == own.keys() == {0, 1, 2, 3}
    for label, mean in found.items():
        assert torch.allclose(mean, own[label], atol=1e-6) == mirrored
    for label, x in enumerate(icarl(strategy).x_memory):
        features = functional.normalize(strategy.model.feature_extractor(x)).mean(dim=0)
        assert torch.allclose(found[label], functional.normalize(features, dim=0), atol=1e-6) != mirrored


def test_a_class_that_was_not_met_is_never_answered():
    """As it is released it may be: when this fails, Avalanche is mended and our copy can go."""
    x = torch.tensor([[-1.0, 0.2]])
    means = {0: torch.zeros(2), 1: torch.tensor([1.0, 0.0])}
    answered = {}
    for kind in (NCMClassifier, NearestMeanOfClassesMet):
        classifier = kind()
        classifier.replace_class_means_dict(means)
        answered[kind] = int(classifier(x).argmax())
    assert answered == {NCMClassifier: 0, NearestMeanOfClassesMet: 1}
    nothing = NearestMeanOfClassesMet()
    nothing.replace_class_means_dict({0: torch.zeros(2), 1: torch.zeros(2)})
    assert nothing(x).isfinite().all(), "before any class is met"


def test_avalanches_own_streams_come_out_as_ours():
    data = TensorDataset(torch.randn(120, 6), torch.arange(120) % 6)
    data.targets = data.tensors[1].tolist()
    theirs = nc_benchmark(data, data, n_experiences=3, task_labels=False, fixed_class_order=[1, 3, 0, 4, 2, 5])
    ours = [
        TensorClassificationDataset.from_tensors(samples(one), torch.tensor(list(one.dataset.targets)), 0)
        for one in theirs.train_stream
    ]
    found, expected = (
        learned(stream).model
        for stream in (labelled(benchmark_from_datasets(train=ours)).train_stream, theirs.train_stream)
    )
    x = samples(theirs.test_stream[0])
    assert torch.equal(found(x), expected(x))
    assert found(x).argmax(dim=1).unique().numel() > 1


def test_a_class_that_comes_back_is_refused():
    with pytest.raises(ValueError, match="class 1 comes back"):
        learned(stream([[0, 1], [2, 1]]))


def growing():
    model = network(2)
    model.classifier = IncrementalClassifier(50, 2)
    return model


@pytest.mark.parametrize("model", [growing, lambda: as_multitask(network(2), "classifier")])
def test_a_classifier_that_grows_or_is_one_a_task_is_refused(model):
    with pytest.raises(ValueError, match=r"needs one classifier that does not grow.*network\.all_classes"):
        learned(stream([[0, 1]]), model())
