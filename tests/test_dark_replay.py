"""DER and DER++ against a step by hand, and their memory against what a reservoir is."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from scipy.stats import chisquare
from torch import nn
from torch.nn import functional

from engrams.benchmarks.data.loading import TensorClassificationDataset
from engrams.benchmarks.data.streams import labelled
from engrams.strategies.dark_replay import DERPlugin
from engrams.strategies.reservoir import Reservoir

RATE = 0.5


def stream_of(*parts):
    data = [TensorClassificationDataset.from_tensors(x, y, task_label=0) for x, y in parts]
    return labelled(benchmark_from_datasets(train=data)).train_stream


def naive(model, plugin, batch, rate=RATE):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return Naive(
        model=model, optimizer=optimizer, train_mb_size=batch, train_epochs=1, plugins=[plugin], evaluator=None
    )


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_two_steps_are_those_of_the_algorithm(beta):
    torch.manual_seed(0)
    x, y = torch.randn(8, 3), torch.tensor([0, 1, 2, 1, 2, 0, 1, 0])
    model = nn.Linear(3, 3)
    by_hand = nn.Linear(3, 3)
    by_hand.load_state_dict(model.state_dict())
    # All four of the memory are drawn, so that nothing is left to chance.
    strategy = naive(model, DERPlugin(mem_size=4, alpha=0.3, beta=beta), batch=4)
    for experience in stream_of((x[:4], y[:4]), (x[4:], y[4:])):
        strategy.train(experience, shuffle=False)

    outputs = by_hand(x[:4]).detach()
    for (now, labels), past in (((x[:4], y[:4]), None), ((x[4:], y[4:]), outputs)):
        step = functional.cross_entropy(by_hand(now), labels)
        if past is not None:
            step = step + 0.3 * ((past - by_hand(x[:4])) ** 2).sum(1).mean() / 3
            step = step + beta * functional.cross_entropy(by_hand(x[:4]), y[:4])
        gradients = torch.autograd.grad(step, list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
                parameter -= RATE * gradient
    for ours, hand in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, hand)


@pytest.mark.parametrize(("count", "size"), [(20, 5), (2, 1)])
def test_every_sample_is_kept_with_the_same_probability(count, size):
    torch.manual_seed(0)
    repeats = 3000
    kept = torch.zeros(count)
    for _ in range(repeats):
        memory = Reservoir(size)
        for minibatch in torch.arange(count).split(3):
            memory.add({"x": minibatch})
        samples = memory.draw(count, torch.device("cpu"))["x"]
        assert len(samples.unique()) == size
        kept[samples] += 1
    assert chisquare(kept.numpy()).pvalue > 0.01
    assert kept.sum() == repeats * size


def test_outputs_of_classes_that_had_not_come_are_compared_with_nothing():
    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.arange(12) // 4
    plugin = DERPlugin(mem_size=12, alpha=1.0)
    strategy = naive(nn.Sequential(nn.Linear(4, 4), IncrementalClassifier(4)), plugin, batch=2)
    for experience in stream_of(*((x[y == label], y[y == label]) for label in range(3))):
        strategy.train(experience, shuffle=False)
        assert strategy.loss.isfinite()
        assert strategy.loss < 50  # Avalanche's masked output is -1000
    kept = plugin.state_dict()["kept"]
    for label in range(3):
        known = ~kept["outputs"][kept["y"] == label].isnan()
        assert known[:, : label + 1].all()
        assert not known[:, label + 1 :].any()


def test_what_is_rehearsed_is_drawn_anew_in_every_step():
    torch.manual_seed(0)
    seen = []

    class Seen(nn.Linear):
        def forward(self, x):
            seen.append(x.flatten().tolist())
            return super().forward(x)

    x, y = torch.arange(40.0)[:, None] / 40, torch.zeros(40, dtype=torch.long)
    naive(Seen(1, 1), DERPlugin(mem_size=4, alpha=1.0, batch_size_mem=2), batch=4).train(
        stream_of((x[:4].repeat(10, 1), y))[0], shuffle=False
    )
    rehearsed = [tuple(drawn) for drawn in seen if len(drawn) == 2]
    assert len(rehearsed) == 9
    assert len(set(rehearsed)) > 4


def test_without_further_arguments_it_is_der_with_as_many_as_a_minibatch():
    plugin = DERPlugin(1, 0.0)
    assert (plugin.beta, plugin.batch_size_mem, plugin.memory.seen) == (0.0, None, 0)


def test_the_same_plugin_under_a_second_strategy_begins_afresh():
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    plugin = DERPlugin(mem_size=4, alpha=1.0)
    for _ in range(2):
        naive(nn.Linear(3, 2), plugin, batch=4).train(stream_of((x, y))[0])
        assert plugin.memory.seen == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.0), "mem_size must be at least 1; got 0"),
        ((5, -1.0), "alpha must"),
        ((5, 1.0, -1.0), "beta must"),
        ((5, 1.0, 0.0, 0), "batch_size_mem must be at least 1; got 0"),
    ],
)
def test_arguments_outside_their_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        DERPlugin(*arguments)
