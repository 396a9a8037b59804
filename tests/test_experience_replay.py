"""Experience replay against steps by hand, and what it may draw from."""

import copy
from collections import OrderedDict

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader
from avalanche.models import as_multitask
from avalanche.training import Naive
from avalanche.training.plugins import SupervisedPlugin
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from engrams.benchmarks.data.loading import TensorClassificationDataset
from engrams.benchmarks.data.streams import labelled
from engrams.benchmarks.training.augment import Augmentation
from engrams.strategies.baselines import ReplayPlugin
from engrams.strategies.dark_replay import DERPlugin
from engrams.strategies.experience_replay import ExperienceReplayPlugin
from tests.test_dark_replay import RATE, assert_same_weights, bare, naive, step_by_hand, stream_of


class Watch(SupervisedPlugin):
    """The samples of every step, as the network is given them."""

    def __init__(self):
        super().__init__()
        self.x = []

    def before_forward(self, strategy, **kwargs):
        self.x.append(strategy.mb_x.clone())


def numbered(*counts):
    """Experiences of so many samples, each of which is its own number."""
    start, parts = 0, []
    for count in counts:
        parts.append((torch.arange(start, start + count).float()[:, None], torch.zeros(count, dtype=torch.long)))
        start += count
    return stream_of(*parts)


@pytest.mark.parametrize("joined", ["minibatch", "loss"])
def test_two_steps_are_those_of_the_algorithm(joined):
    torch.manual_seed(0)
    x, y = torch.randn(7, 3), torch.tensor([0, 1, 2, 1, 2, 0, 1])
    model, by_hand = nn.Linear(3, 3), nn.Linear(3, 3)
    by_hand.load_state_dict(model.state_dict())
    # All four of the memory are drawn, so that nothing is left to chance; the second minibatch has three.
    strategy = naive(model, ExperienceReplayPlugin(4, 4, joined=joined))
    for experience in stream_of((x[:4], y[:4]), (x[4:], y[4:])):
        strategy.train(experience, shuffle=False)

    def loss(*rows):
        return functional.cross_entropy(by_hand(x[list(rows)]), y[list(rows)])

    for place in range(2):
        step = loss(0, 1, 2, 3)
        if place and joined == "minibatch":
            step = loss(0, 1, 2, 3, 4, 5, 6)
        elif place:
            step = loss(4, 5, 6) + loss(0, 1, 2, 3)
        step_by_hand(by_hand, step)
    assert_same_weights(model, by_hand)


@pytest.mark.parametrize("joined", ["minibatch", "loss"])
def test_batch_norm_sees_the_drawn_samples_apart_where_they_have_a_loss_of_their_own(joined):
    norm = nn.BatchNorm1d(1, momentum=1.0)  # keeps the mean of the last call
    strategy = naive(nn.Sequential(norm, nn.Linear(1, 2)), ExperienceReplayPlugin(4, 4, joined=joined))
    for experience in numbered(4, 4):
        strategy.train(experience, shuffle=False)
    assert norm.num_batches_tracked == (2 if joined == "minibatch" else 3)
    assert norm.running_mean == pytest.approx(3.5 if joined == "minibatch" else 1.5)


@pytest.mark.parametrize(
    ("draws_from", "expected"),
    [("all", [4, 8, 8, 8, 8, 8]), ("past", [4, 4, 8, 8, 8, 8])],
)
def test_what_may_be_drawn(draws_from, expected):
    torch.manual_seed(0)
    watch = Watch()
    strategy = naive(nn.Linear(1, 2), ExperienceReplayPlugin(100, draws_from=draws_from), watch)
    for experience in numbered(8, 16):
        strategy.train(experience, shuffle=False)
    assert [len(x) for x in watch.x] == expected
    replayed = {float(sample) for x in watch.x[2:] for sample in x[4:]}
    of_the_present = {sample for sample in replayed if sample >= 8}
    assert bool(of_the_present) == (draws_from == "all")
    assert len(replayed & set(range(8))) > 4, "others in every step"
    for x in watch.x:
        assert len(set(x.flatten().tolist())) == len(x), "none is drawn twice in a step, nor those just come"


@pytest.mark.parametrize("size", [2, 3])
def test_a_piece_of_an_experience_is_not_the_past(size):
    watch = Watch()
    plugin = ExperienceReplayPlugin(100, draws_from="past")
    strategy = naive(nn.Linear(1, 2), plugin, watch, batch=1)
    benchmark = benchmark_from_datasets(train=[experience.dataset for experience in numbered(6, 6)])
    pieces = split_online_stream(benchmark.train_stream, experience_size=size, access_task_boundaries=True)
    for experience in pieces:
        strategy.train(experience, shuffle=False)
    assert [len(x) for x in watch.x] == [1] * 6 + [2] * 6
    assert all(x[1] < 6 for x in watch.x[6:])


def test_where_everything_may_be_drawn_the_ends_of_experiences_may_be_hidden():
    benchmark = benchmark_from_datasets(train=[experience.dataset for experience in numbered(6, 6)])
    for draws_from, hidden in (("all", False), ("past", True)):
        pieces = split_online_stream(benchmark.train_stream, experience_size=3, access_task_boundaries=False)
        strategy = naive(nn.Linear(1, 2), ExperienceReplayPlugin(5, draws_from=draws_from), batch=3)
        if hidden:
            with pytest.raises(ValueError, match="let draws_from be 'all'"):
                strategy.train(next(iter(pieces)).train())
        else:
            for piece in pieces:
                strategy.train(piece.train())
            assert strategy.plugins[0].memory.seen == 12


@pytest.mark.parametrize("joined", ["minibatch", "loss"])
def test_the_memory_has_images_as_they_came_and_what_it_replays_is_changed_with_the_new_ones(joined):
    torch.manual_seed(0)
    x = torch.arange(8.0)[:, None, None, None] + torch.tensor([0.0, 100.0]).expand(1, 1, 1, 2)
    plugin, augmentation = ExperienceReplayPlugin(8, joined=joined), Augmentation(flips=True)
    forwarded = []

    class Seen(nn.Linear):
        def forward(self, x):
            forwarded.append(x.clone())
            return super().forward(x)

    model = nn.Sequential(nn.Flatten(), Seen(2, 2))
    strategy = naive(model, augmentation.new, plugin, augmentation)
    for _ in range(5):
        strategy.train(stream_of((x, torch.zeros(8, dtype=torch.long)))[0], shuffle=False)
    kept = plugin.memory.columns["0"]
    assert (kept[..., 1] - kept[..., 0] == 100).all()
    replayed = torch.cat(forwarded[1:] if joined == "loss" else [part[4:] for part in forwarded[1:]])
    mirrored = replayed[:, 0] > replayed[:, 1]
    assert 0 < mirrored.float().mean() < 1


def test_what_is_drawn_goes_through_the_heads_of_its_tasks():
    """In the second experience both heads learn, each from its own samples."""
    torch.manual_seed(0)
    model = as_multitask(nn.Sequential(OrderedDict(classifier=nn.Linear(1, 2))), "classifier")
    data = [
        TensorClassificationDataset.from_tensors(torch.randn(4, 1), torch.arange(4) % 2, task_label=task)
        for task in range(2)
    ]
    strategy = naive(model, ExperienceReplayPlugin(8, 4, draws_from="past", joined="loss"))
    first, second = labelled(benchmark_from_datasets(train=data)).train_stream
    strategy.train(first)
    head = model.classifier.classifiers["0"].classifier
    model.classifier.adaptation(second)
    expected = copy.deepcopy(model)
    strategy.train(second, shuffle=False)
    (x0, y0), (x1, y1) = ((torch.stack([x for x, *_ in one]), torch.tensor([y for _, y, *_ in one])) for one in data)
    loss = functional.cross_entropy(expected(x1, 1), y1) + functional.cross_entropy(expected(x0, 0), y0)
    gradient = torch.autograd.grad(loss, expected.classifier.classifiers["0"].classifier.weight)[0]
    before = expected.classifier.classifiers["0"].classifier.weight.detach()
    torch.testing.assert_close(head.weight.detach(), before - RATE * gradient)


# --- both memories' ---------------------------------------------------------------------------------------------------

MEMORIES = {
    "er": lambda: ExperienceReplayPlugin(100, 4),
    "er, a loss of its own": lambda: ExperienceReplayPlugin(100, 4, joined="loss"),
    "derpp": lambda: DERPlugin(100, 0.3, 0.7, 4),
}


@pytest.mark.parametrize("last", MEMORIES)
@pytest.mark.parametrize("first", [*MEMORIES, "replay"])
def test_what_another_plugin_replays_is_nothing_new(first, last):
    torch.manual_seed(0)
    plugins = [ReplayPlugin(4) if first == "replay" else MEMORIES[first](), MEMORIES[last]()]
    strategy = naive(nn.Linear(1, 2), *plugins)
    for experience in numbered(4, 4, 2):
        strategy.train(experience)
    for plugin in plugins[first == "replay" :]:
        memory = plugin.memory
        assert sorted(memory.columns["0"][: memory.seen].flatten().tolist()) == list(range(10))


@pytest.mark.parametrize("order", [1, -1])
def test_two_that_learn_what_they_draw_apart_add_a_loss_each(order):
    torch.manual_seed(0)
    x, y = torch.randn(7, 3), torch.tensor([0, 1, 2, 1, 2, 0, 1])
    model, by_hand = nn.Linear(3, 3), nn.Linear(3, 3)
    by_hand.load_state_dict(model.state_dict())
    plugins = [ExperienceReplayPlugin(4, joined="loss"), ReplayPlugin(4), DERPlugin(4, 0.3, 0.7)]
    strategy = naive(model, *plugins[::order])
    # All four of the first experience are in each of the memories.
    for experience in stream_of((x[:4], y[:4]), (x[[4, 5, 6, 6]], y[[4, 5, 6, 6]])):
        strategy.train(experience, shuffle=False)

    def loss(*rows):
        return functional.cross_entropy(by_hand(x[list(rows)]), y[list(rows)])

    old = by_hand(x[:4]).detach()
    step_by_hand(by_hand, loss(0, 1, 2, 3))
    distance = functional.mse_loss(by_hand(x[:4]), old)
    step_by_hand(by_hand, loss(4, 5, 6, 6, 0, 1, 2, 3) + 1.7 * loss(0, 1, 2, 3) + 0.3 * distance)
    assert_same_weights(model, by_hand)


class WithFeatures(nn.Linear):
    """Its outputs, and what they are of."""

    def forward(self, x):
        return super().forward(x), x


class FirstOfTwo(Naive):
    def forward(self):
        return super().forward()[0]


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_is_drawn_goes_through_the_strategys_own_forward(memory):
    learned = []
    for network, kind in ((nn.Linear(1, 2), Naive), (WithFeatures(1, 2), FirstOfTwo)):
        nn.init.constant_(network.weight, 0.1)
        nn.init.zeros_(network.bias)
        torch.manual_seed(0)
        strategy = naive(network, MEMORIES[memory](), rate=0.01, kind=kind)
        for experience in numbered(6, 6):
            strategy.train(experience)
        learned.append(network.weight.detach())
    assert torch.equal(*learned)


class OneAgainstAll(Naive):
    """Has a loss of its own, which is not its criterion."""

    def criterion(self):
        return functional.binary_cross_entropy_with_logits(self.mb_output, functional.one_hot(self.mb_y, 2).float())


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_is_drawn_has_the_strategys_own_loss(memory):
    def one_against_all(outputs, y):
        return functional.binary_cross_entropy_with_logits(outputs, functional.one_hot(y, 2).float())

    learned = []
    for criterion, kind in ((one_against_all, Naive), (None, OneAgainstAll)):
        torch.manual_seed(0)
        network = nn.Linear(1, 2)
        strategy = naive(network, MEMORIES[memory](), rate=0.01, criterion=criterion, kind=kind)
        for experience in numbered(6, 6):
            strategy.train(experience)
        learned.append(network.weight.detach())
    assert torch.equal(*learned)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_loss_may_take_the_first_of_what_the_network_gives_and_der_says_that_it_cannot(memory):
    class LossOfFirst(Naive):
        def criterion(self):
            return self._criterion(self.mb_output[0], self.mb_y)

    network = WithFeatures(1, 2)
    before = network.weight.detach().clone()
    strategy = naive(network, MEMORIES[memory](), rate=0.01, kind=LossOfFirst)
    if memory != "derpp":
        strategy.train(numbered(8)[0])
        return
    with pytest.raises(ValueError, match=r"DERPlugin cannot work here: the network gives a tuple .* the outputs alone"):
        strategy.train(numbered(8)[0])
    assert torch.equal(network.weight, before), "nothing was learned"


@pytest.mark.parametrize("memory", MEMORIES)
def test_streams_may_have_no_task_labels_or_other_columns(memory):
    x, y, other = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2, torch.rand(8)
    tasks, learned = torch.zeros(8, dtype=torch.long), []
    for columns in ((x, y, tasks), (x, y), (x, y, other, tasks)):
        torch.manual_seed(0)
        network = nn.Linear(3, 2)
        strategy = naive(network, MEMORIES[memory]())
        strategy.train(bare(*columns))
        learned.append(network.weight.detach())
    assert torch.equal(learned[0], learned[1])
    assert torch.equal(learned[0], learned[2])


@pytest.mark.parametrize("plugin", [*MEMORIES.values(), lambda: ReplayPlugin(4)])
def test_samples_of_several_parts_are_refused_before_anything_is_learned(plugin):
    class Parts(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"x": torch.zeros(1)}, index % 2, 0

    class Unmoved(Naive):
        def _unpack_minibatch(self):
            pass

        def forward(self):
            pytest.fail("a step is begun")

    [experience] = benchmark_from_datasets(train=[AvalancheDataset([Parts()])]).train_stream
    with pytest.raises(ValueError, match=r"keeps samples of tensors; the columns .* are: dict, Tensor, Tensor\. Let"):
        naive(nn.Linear(1, 2), plugin(), kind=Unmoved).train(experience)


def changed(columns):
    """Inputs are normalised, labels are mapped, and there is a column more."""
    x, y, *others = columns
    return [x + 100, 1 - y, *others, torch.ones(len(x))]


class Unpacking(Naive):
    def _unpack_minibatch(self):
        super()._unpack_minibatch()
        self.mbatch = changed(self.mbatch)


class Collating(Naive):
    def make_train_dataloader(self, **kwargs):
        data = self.adapted_dataset
        self.dataloader = DataLoader(data, 4, collate_fn=lambda samples: changed(data.collate_fn(samples)))


class CollatingForAvalanche(Naive):
    def make_train_dataloader(self, **kwargs):
        data = self.adapted_dataset
        self.dataloader = SingleDatasetDataLoader(
            data, batch_size=4, collate_fn=lambda samples: changed(data.collate_fn(samples))
        )


@pytest.mark.parametrize("kind", [Unpacking, Collating, CollatingForAvalanche])
@pytest.mark.parametrize("memory", [*MEMORIES.values(), lambda: ReplayPlugin(8)])
def test_what_is_replayed_has_been_changed_once_as_the_strategy_changes_what_is_new(kind, memory):
    x, y = torch.arange(8.0)[:, None], torch.arange(8) % 2
    seen = []

    class Seen(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            seen.extend(zip(*(column.flatten().tolist() for column in strategy.mbatch), strict=True))

    class Net(nn.Linear):
        def forward(self, x):
            assert x.min() >= 100
            assert x.max() < 108
            return super().forward(x)

    strategy = naive(Net(1, 2), memory(), Seen(), rate=0.0, kind=kind)
    for experience in bare(x[:4], y[:4]), bare(x[4:], y[4:]):
        strategy.train(experience)
    assert {label == 1 - int(sample) % 2 for sample, label, _ in seen} == {True}


# --- a memory's life --------------------------------------------------------------------------------------------------


def test_it_goes_on_from_a_state():
    def learned(cut):
        torch.manual_seed(0)
        model = nn.Linear(1, 2)
        plugin = ExperienceReplayPlugin(5, draws_from="past")
        strategy = naive(model, plugin)
        first, second, third = numbered(8, 8, 8)
        strategy.train(first)
        strategy.train(second)
        if cut:
            state = plugin.state_dict()
            other = ExperienceReplayPlugin(5, draws_from="past")
            other.load_state_dict(state)
            strategy.plugins[strategy.plugins.index(plugin)] = other
        strategy.train(third)
        return model.weight.detach()

    assert torch.equal(learned(cut=True), learned(cut=False))


def test_the_same_plugin_under_a_second_strategy_begins_afresh():
    plugin = ExperienceReplayPlugin(100, draws_from="past")
    for _ in range(2):
        watch = Watch()
        naive(nn.Linear(1, 2), plugin, watch).train(numbered(8)[0])
        assert [len(x) for x in watch.x] == [4, 4]
        assert plugin.memory.seen == 8


def test_a_memory_and_a_draw_may_be_of_one_sample():
    plugin = ExperienceReplayPlugin(1, 1)
    assert (plugin.mem_size, plugin.batch_size_mem) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mem_size": 0}, "mem_size must be at least 1; got 0"),
        ({"batch_size_mem": 0}, "batch_size_mem must be at least 1; got 0"),
        ({"draws_from": "future"}, "draws_from must be one of all, past; got 'future'"),
        ({"joined": "sum"}, "joined must be one of minibatch, loss; got 'sum'"),
    ],
)
def test_arguments_outside_their_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExperienceReplayPlugin(**{"mem_size": 5} | arguments)
