"""DER and DER++ against a step by hand, and their memory against what a reservoir is."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import SupervisedPlugin
from scipy.stats import chisquare
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from engrams.benchmarks.data.loading import TensorClassificationDataset
from engrams.benchmarks.data.streams import labelled
from engrams.benchmarks.training.augment import Augmentation
from engrams.strategies.baselines import ReplayPlugin
from engrams.strategies.dark_replay import DERPlugin
from engrams.strategies.experience_replay import ExperienceReplayPlugin
from engrams.strategies.reservoir import Reservoir

RATE = 0.5


def stream_of(*parts):
    data = [TensorClassificationDataset.from_tensors(x, y, task_label=0) for x, y in parts]
    return labelled(benchmark_from_datasets(train=data)).train_stream


def bare(*columns):
    """An experience of a data set's columns, of which it says nothing."""
    [experience] = benchmark_from_datasets(train=[AvalancheDataset([TensorDataset(*columns)])]).train_stream
    return experience


def naive(model, *plugins, batch=4, rate=RATE, criterion=None, kind=Naive):
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=rate),
        criterion=criterion or nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=1,
        plugins=list(plugins),
        evaluator=None,
    )


def step_by_hand(network, loss):
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= RATE * gradient


def assert_same_weights(network, by_hand):
    for ours, hand in zip(network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, hand)


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
        step_by_hand(by_hand, step)
    assert_same_weights(model, by_hand)


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


def test_vectors_may_be_longer_or_shorter_than_those_before():
    memory = Reservoir(4, growing=("outputs",))
    for width in (2, 3, 1):
        whole = torch.full((1, 3), width)  # has no NaN
        memory.add({"outputs": torch.full((1, width), float(width)), "place": torch.tensor([width]), "whole": whole})
    drawn = memory.draw(4, torch.device("cpu"))
    for outputs, width in zip(drawn["outputs"], drawn["place"].tolist(), strict=True):
        assert outputs.tolist()[:width] == [width] * width
        assert outputs[width:].isnan().all()
        assert len(outputs) == 3
    assert drawn["whole"].tolist() == [[width] * 3 for width in drawn["place"].tolist()]


@pytest.mark.parametrize(
    "make",
    [
        lambda: DERPlugin(8, alpha=1.0, beta=1.0),
        lambda: ExperienceReplayPlugin(8),
        lambda: ExperienceReplayPlugin(8, joined="loss"),
        lambda: ReplayPlugin(8),
    ],
)
@pytest.mark.parametrize("tokens", [True, False])
def test_sequences_that_are_padded_by_the_minibatch_are_refused(make, tokens):
    """Their shape is the minibatch's: no NaN is put into them, and torch's own message says nothing of it."""

    def padded(batch):
        x, y, *others = zip(*batch, strict=True)
        return [nn.utils.rnn.pad_sequence(x, batch_first=True), torch.tensor(y), *map(torch.tensor, others)]

    class Padding(Naive):
        def make_train_dataloader(self, **kwargs):
            self.dataloader = DataLoader(self.adapted_dataset, 4, shuffle=True, collate_fn=padded)

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Embedding(7, 4) if tokens else nn.Linear(1, 4)
            self.classifier = nn.Linear(4, 2)

        def forward(self, x):
            return self.classifier(self.first(x if tokens else x[..., None]).mean(1))

    torch.manual_seed(0)
    sequences = [torch.randint(7, (3 + n // 8,)) for n in range(32)]
    rows = [(x if tokens else x.float(), n % 2) for n, x in enumerate(sequences)]
    data = [AvalancheDataset([rows[k::2]], collate_fn=padded) for k in range(2)]
    strategy = naive(Pooled(), make(), kind=Padding)

    def train_all():
        for experience in benchmark_from_datasets(train=data).train_stream:
            strategy.train(experience)

    with pytest.raises(ValueError, match=r"let the data set give all of one shape \(sequences padded to one length\)"):
        train_all()


@pytest.mark.parametrize(
    ("criterion", "y"),
    [
        (nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 25.0])), torch.arange(8) % 3),
        (nn.BCEWithLogitsLoss(), torch.arange(24).view(8, 3) % 2.0),
        (nn.MSELoss(), torch.linspace(-3, 3, 24).view(8, 3)),
    ],
    ids=["class weights", "several labels", "regression"],
)
def test_labels_are_rehearsed_by_the_strategys_own_criterion(criterion, y):
    torch.manual_seed(0)
    x = torch.randn(8, 3)
    model, by_hand = nn.Linear(3, 3), nn.Linear(3, 3)
    by_hand.load_state_dict(model.state_dict())
    strategy = naive(model, DERPlugin(mem_size=4, alpha=0.0, beta=0.7), criterion=criterion)
    for experience in bare(x[:4], y[:4], torch.zeros(4)), bare(x[4:], y[4:], torch.zeros(4)):
        strategy.train(experience, shuffle=False)
    step_by_hand(by_hand, criterion(by_hand(x[:4]), y[:4]))
    step_by_hand(by_hand, criterion(by_hand(x[4:]), y[4:]) + 0.7 * criterion(by_hand(x[:4]), y[:4]))
    assert_same_weights(model, by_hand)


def test_outputs_may_be_one_number_a_sample():
    x, y, learned = torch.linspace(-1, 1, 24).view(8, 3), torch.arange(8) % 2, []
    for shape in (nn.Identity(), nn.Flatten(0)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 1), shape)
        strategy = naive(
            network, DERPlugin(8, 0.3, 0.7), criterion=lambda outputs, y: (outputs.flatten() - y).square().mean()
        )
        strategy.train(bare(x, y))
        learned.append(network[0].weight.detach())
    assert torch.equal(*learned)


def test_it_goes_on_from_a_state():
    def learned(cut):
        torch.manual_seed(0)
        model, plugin = nn.Linear(3, 2), DERPlugin(5, alpha=1.0)
        strategy = naive(model, plugin, batch=4)
        for place in range(3):
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(place))
            if cut and place == 2:
                other = DERPlugin(5, alpha=1.0)
                other.load_state_dict(plugin.state_dict())
                strategy.plugins[strategy.plugins.index(plugin)] = other
            strategy.train(stream_of((x, torch.arange(8) % 2), (x, torch.arange(8) % 2))[0])
        return model.weight.detach()

    assert torch.equal(learned(cut=True), learned(cut=False))


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
        known = ~kept["outputs"][kept["1"] == label].isnan()
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


def test_a_memory_and_a_draw_may_be_of_one_sample():
    plugin = DERPlugin(1, 0.0, batch_size_mem=1)
    assert (plugin.mem_size, plugin.batch_size_mem) == (1, 1)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_memory_has_images_as_they_came_and_what_it_draws_is_augmented_anew(beta):
    torch.manual_seed(0)
    forwarded = []

    class Seen(nn.Linear):
        def forward(self, x):
            forwarded.append(x.clone())
            return super().forward(x)

    x = torch.arange(8.0)[:, None, None, None] + torch.tensor([0.0, 100.0]).expand(1, 1, 1, 2)
    plugin, augmentation = DERPlugin(8, 0.0, beta), Augmentation(flips=True)
    strategy = naive(nn.Sequential(nn.Flatten(), Seen(2, 2)), augmentation.new, plugin, augmentation, batch=8, rate=0.0)
    for _ in range(6):  # steps: all but the first draw all eight, for each of the terms
        strategy.train(stream_of((x, torch.zeros(8, dtype=torch.long)))[0], shuffle=False)
    kept = plugin.memory.columns["0"]
    assert (kept[..., 1] - kept[..., 0] == 100).all()
    terms = 2 if beta else 1
    assert [len(part) for part in forwarded] == [8] + [8] * (1 + terms) * 5
    for term in range(1 + terms):
        images = torch.cat(forwarded[1 + term :: 1 + terms])
        assert (images.max(1).values - images.min(1).values == 100).all()
        assert 0.2 < (images[:, 0] > images[:, 1]).float().mean() < 0.8


def test_what_others_replay_behind_it_is_learned_and_not_kept():
    torch.manual_seed(0)
    learned = []

    class More(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            x, y, tasks = strategy.mbatch
            strategy.mbatch = [torch.cat([x, -torch.ones(1, 1)]), torch.cat([y, y[:1]]), torch.cat([tasks, tasks[:1]])]

        def before_backward(self, strategy, **kwargs):
            learned.append(strategy.mb_x.flatten().tolist())

    x, y = torch.arange(8.0)[:, None], torch.zeros(8, dtype=torch.long)
    plugin = DERPlugin(8, 1.0, 1.0)
    naive(nn.Linear(1, 1), plugin, More(), batch=4, rate=0.0).train(stream_of((x, y))[0], shuffle=False)
    assert learned == [[0.0, 1.0, 2.0, 3.0, -1.0], [4.0, 5.0, 6.0, 7.0, -1.0]]
    assert sorted(plugin.memory.columns["0"].flatten().tolist()) == list(range(8))
    assert len(plugin.memory.columns["outputs"]) == 8


class Accumulating(Naive):
    """Makes an update of every two minibatches' gradients."""

    def training_epoch(self, **kwargs):
        for place, minibatch in enumerate(self.dataloader):
            self.mbatch = minibatch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self._before_forward(**kwargs)
            self.mb_output = self.forward()
            self._after_forward(**kwargs)
            self.loss = self.criterion() / 2
            self._before_backward(**kwargs)
            self.backward()
            self._after_backward(**kwargs)
            if place % 2:
                self._before_update(**kwargs)
                self.optimizer_step()
                self._after_update(**kwargs)
                self.optimizer.zero_grad()
            self._after_training_iteration(**kwargs)


@pytest.mark.parametrize("kind", [Naive, Accumulating])
def test_every_minibatch_is_offered_once_with_the_outputs_that_it_was_learned_with(kind):
    torch.manual_seed(0)
    x, y, learned = torch.randn(24, 3), torch.arange(24) % 2, {}

    class Outputs(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            learned.update(zip(map(tuple, strategy.mb_x.tolist()), strategy.mb_output.detach(), strict=True))

    plugin = DERPlugin(24, 0.5)
    naive(nn.Linear(3, 2), plugin, Outputs(), kind=kind).train(stream_of((x, y))[0])
    assert plugin.memory.seen == 24
    kept = plugin.memory.columns
    for sample, outputs in zip(kept["0"].tolist(), kept["outputs"], strict=True):
        assert torch.equal(learned[tuple(sample)], outputs)


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
