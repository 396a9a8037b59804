"""In-memory minibatches under Avalanche's own strategies."""

from collections import Counter
from functools import partial

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.models import SimpleMLP, as_multitask
from avalanche.training import Cumulative, JointTraining, LwF, Naive, Replay
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from engrams.benchmarks.data import loading
from engrams.benchmarks.data.loading import InMemoryLoading, TensorClassificationDataset, TensorLoader, tensors_of
from engrams.benchmarks.data.streams import labelled, make_benchmark
from engrams.benchmarks.training.augment import Augmentation, cropped
from engrams.reports.errors import UserError
from engrams.strategies.baselines import ReplayPlugin
from tests.test_streams import DATA, gradual, split

TASKS = make_benchmark(DATA, split("task"), "task", "test", seed=0)


class Recorder(SupervisedPlugin):
    """Which images, labels and task labels each epoch visited, in order."""

    def __init__(self):
        super().__init__()
        self.epochs = []
        self.loaders = []

    def before_training_epoch(self, strategy, **kwargs):
        self.epochs.append([])
        self.loaders.append(type(strategy.dataloader))

    def before_training_iteration(self, strategy, **kwargs):
        rows = zip(strategy.mb_x, strategy.mb_y.tolist(), strategy.mb_task_id.tolist(), strict=True)
        self.epochs[-1] += [(tuple(x.flatten().tolist()), y, task) for x, y, task in rows]


def train(make, benchmark, *plugins, experiences=None, seed=0, batch_size=32, **kwargs):
    torch.manual_seed(seed)
    model = as_multitask(SimpleMLP(num_classes=2, input_size=64, hidden_size=16), "classifier")
    strategy = make(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch_size,
        train_epochs=2,
        eval_mb_size=64,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[BaseLogger()]),
        **kwargs,
    )
    for experience in experiences or benchmark.train_stream[:2]:
        strategy.train(experience)
    return strategy


def samples(*experiences):
    return Counter(
        (tuple(x.flatten().tolist()), y, task)
        for experience in experiences
        for x, y, task in ((sample[0], int(sample[1]), sample[2]) for sample in experience.dataset)
    )


def test_every_epoch_visits_every_sample_once_in_a_fresh_seeded_order():
    orders = []
    for seed in (7, 7, 8):
        recorder = Recorder()
        train(Naive, TASKS, InMemoryLoading(seed), recorder)
        assert recorder.loaders == [TensorLoader] * 4
        for index, epoch in enumerate(recorder.epochs):
            assert Counter(epoch) == samples(TASKS.train_stream[index // 2])
        assert recorder.epochs[0] != recorder.epochs[1]
        orders.append(recorder.epochs)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("make", [Cumulative, LwF])
def test_serves_avalanches_own_strategies(make):
    recorder = Recorder()
    extra = {"alpha": 1.0, "temperature": 2.0} if make is LwF else {}
    strategy = train(make, TASKS, InMemoryLoading(), recorder, **extra)
    assert set(recorder.loaders) == {TensorLoader}
    seen = TASKS.train_stream[:2] if make is Cumulative else TASKS.train_stream[1:2]
    assert Counter(recorder.epochs[-1]) == samples(*seen)
    assert all(0.5 < value <= 1 for value in list(strategy.eval(TASKS.test_stream[:2]).values()))


def test_joint_training_visits_all_experiences_each_epoch_once():
    recorder = Recorder()
    train(JointTraining, TASKS, InMemoryLoading(), recorder, experiences=[TASKS.train_stream])
    assert Counter(recorder.epochs[0]) == samples(*TASKS.train_stream)


def test_minibatches_of_fewer_samples_than_there_are_tasks():
    """As in one pass over 17 tasks by ten: Avalanche's own loader, which balances tasks, cannot be made."""
    with pytest.raises(AssertionError):
        train(JointTraining, TASKS, experiences=[TASKS.train_stream], batch_size=3)
    recorder = Recorder()
    strategy = train(JointTraining, TASKS, InMemoryLoading(), recorder, experiences=[TASKS.train_stream], batch_size=3)
    assert Counter(recorder.epochs[0]) == samples(*TASKS.train_stream)
    assert strategy.dataloader.batches.batch_size == strategy.train_mb_size == 3


def test_a_strategy_that_builds_its_own_loader_keeps_it():
    recorder = Recorder()
    train(Replay, TASKS, InMemoryLoading(), recorder, mem_size=40)
    assert TensorLoader not in recorder.loaders[2:]
    replayed = Counter({key: n for key, n in Counter(recorder.epochs[2]).items() if key[2] == 0})
    assert replayed, "samples of the first experience come back"
    assert set(replayed) <= set(samples(TASKS.train_stream[0]))


def test_evaluation_is_the_same_as_sample_by_sample():
    strategy = train(Naive, TASKS, InMemoryLoading())
    found = strategy.eval(TASKS.test_stream)
    strategy.model.eval()
    for index, experience in enumerate(TASKS.test_stream):
        right = [
            int(strategy.model(sample[0][None], sample[2]).argmax()) == int(sample[1]) for sample in experience.dataset
        ]
        name = f"Top1_Acc_Exp/eval_phase/test_stream/Task{index:03d}/Exp{index:03d}"
        assert found[name] == pytest.approx(sum(right) / len(right))


def test_what_is_asked_of_the_template_is_kept_to():
    recorder = Recorder()
    strategy = train(Naive, TASKS, experiences=TASKS.train_stream[:1])
    strategy.plugins[:0] = [InMemoryLoading(), recorder]
    experience = next(e for e in TASKS.train_stream[1:] if len(e.dataset) % 32)
    strategy.train(experience, shuffle=False, drop_last=True)
    in_order = [(tuple(s[0].flatten().tolist()), int(s[1]), s[2]) for s in experience.dataset]
    assert recorder.epochs[0] == in_order[: len(in_order) // 32 * 32]
    assert len(recorder.epochs[0]) < len(in_order)


def test_tensors_of_concatenations_and_subsets():
    first, second = (experience.dataset for experience in TASKS.train_stream[:2])
    both = first.concat(second).subset([0, 5, len(first), len(first) + 3])
    x, y, tasks = tensors_of(both)
    for index in range(4):
        sample = both[index]
        assert torch.equal(sample[0], x[index])
        assert (int(sample[1]), sample[2]) == (y[index].item(), tasks[index].item())
    assert tasks.tolist() == [0, 0, 1, 1]
    assert both.targets_task_labels.uniques == {0, 1}
    batch = both.collate_fn(both.__getitems__([3, 0]))
    assert torch.equal(batch[0], x[[3, 0]])
    assert batch[2].tolist() == [1, 0]


def test_a_buffer_of_many_subsets_is_copied_and_not_what_they_are_subsets_of(monkeypatch):
    """Every subset has the whole data set below it, which Avalanche repeats where it joins them."""
    whole = concat_datasets([TASKS.train_stream[0].dataset])
    exemplars = [whole.subset(range(n, n + 20)).subset(range(10)) for n in range(0, 200, 20)]
    joined = concat_datasets([TASKS.train_stream[1].dataset, *exemplars])
    copied = []

    def counted(column, places, of=loading._taken):
        copied.append(len(places))
        return of(column, places)

    def counted_joined(several, of=loading._joined):
        copied.append(sum(map(len, several)))
        return of(several)

    monkeypatch.setattr(loading, "_taken", counted)
    monkeypatch.setattr(loading, "_joined", counted_joined)
    x, y, tasks = tensors_of(joined)
    assert torch.equal(x, torch.stack([sample[0] for sample in joined]))
    assert y.tolist() == [int(sample[1]) for sample in joined]
    assert tasks.tolist() == [sample[2] for sample in joined]
    assert max(copied) == len(joined)


class Darkened(TensorDataset):
    def __getitem__(self, index):
        x, *others = super().__getitem__(index)
        return (0 * x, *others)


def darkened(samples):
    x, *others = default_collate(samples)
    return [0 * x, *others]


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: make_avalanche_dataset(Darkened(x, y)),
        lambda x, y: make_avalanche_dataset(TensorDataset(x, y), collate_fn=darkened),
    ],
    ids=["a class below TensorDataset", "a collation"],
)
def test_what_ones_own_data_set_makes_of_its_samples_is_learned_and_judged(make):
    seen = []

    class Look(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            seen.append(strategy.mb_x)

        after_eval_forward = after_forward

    data = make(torch.ones(20, 3), torch.arange(20) % 2)
    model = nn.Linear(3, 2)
    strategy = SupervisedTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        plugins=[InMemoryLoading(0), Look()],
        evaluator=EvaluationPlugin(),
    )
    benchmark = benchmark_from_datasets(train=[data], test=[data])
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    assert len(seen) > 2
    assert not torch.cat(seen).any()


def test_transformed_data_keep_avalanches_loader():
    TASKS.train_stream[0].dataset.__getitems__([0])  # what was read before must not come back
    dataset = TASKS.train_stream[0].dataset.replace_current_transform_group(lambda x: x + 1)
    assert tensors_of(dataset) is None
    batch = dataset.collate_fn(dataset.__getitems__([0, 1]))
    torch.testing.assert_close(batch[0][1], TASKS.train_stream[0].dataset[1][0] + 1)


@pytest.mark.parametrize("make", [Naive, Cumulative, Replay])
def test_what_is_read_sample_by_sample_comes_in_the_same_order_and_is_learned_the_same(make):
    class OneByOne:
        def __init__(self, x):
            self.x = x

        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return self.x[index]

    found = []
    for wrap in (lambda x: x, OneByOne):
        datasets = [
            TensorClassificationDataset.from_tensors(wrap(x), y, task_label=0)
            for x, y, _ in (tensors_of(experience.dataset) for experience in TASKS.train_stream[:2])
        ]
        benchmark = labelled(benchmark_from_datasets(train=datasets))
        recorder = Recorder()
        extra = {"mem_size": 40} if make is Replay else {}
        strategy = train(make, benchmark, InMemoryLoading(3), recorder, **extra)
        found.append((recorder, strategy.model.state_dict()))
    (kept, kept_parameters), (read, read_parameters) = found
    assert set(kept.loaders[:2]) == {TensorLoader}
    assert set(read.loaders[:2]) == {DataLoader}
    assert kept.epochs == read.epochs
    for name, parameter in kept_parameters.items():
        assert torch.equal(parameter, read_parameters[name])


def test_flips_mirror_about_half_of_the_training_images_and_none_in_evaluation():
    class Judged(Recorder):
        def before_eval_iteration(self, strategy, **kwargs):
            self.judged = strategy.mb_x

    plain, flipped = Recorder(), Judged()
    train(Naive, TASKS, InMemoryLoading(), plain, experiences=TASKS.train_stream[:1])
    strategy = train(
        Naive, TASKS, InMemoryLoading(), Augmentation(flips=True, seed=5), flipped, experiences=TASKS.train_stream[:1]
    )
    mirrored = 0
    for epoch, changed in zip(plain.epochs, flipped.epochs, strict=True):
        for (before, y, _), (after, same_y, _) in zip(epoch, changed, strict=True):
            assert y == same_y
            if before != after:
                assert torch.equal(torch.tensor(before).view(8, 8).flip(-1), torch.tensor(after).view(8, 8))
                mirrored += 1
    assert 0.4 < mirrored / sum(len(epoch) for epoch in plain.epochs) < 0.6
    strategy.eval(TASKS.test_stream[:1])
    assert torch.equal(flipped.judged, tensors_of(TASKS.test_stream[0].dataset)[0][-len(flipped.judged) :])


def test_crops_are_windows_of_the_padded_image():
    torch.manual_seed(0)
    x, offsets = torch.rand(9, 2, 5, 6), torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    black = torch.tensor([0.25, 0.75])[:, None, None]
    for image, window, (top, left) in zip(x, cropped(x, 1, offsets, black), offsets.T.tolist(), strict=True):
        whole = black.expand(2, 7, 8).clone()
        whole[:, 1:-1, 1:-1] = image
        assert torch.equal(window, whole[:, top : top + 5, left : left + 6])
    assert torch.equal(cropped(x, 1, torch.ones_like(offsets), 0.0), x)


@pytest.mark.parametrize("replay", ["ours", "avalanche's"])
@pytest.mark.parametrize("augmented", ["both", "stream", "buffer"])
def test_stream_and_buffer_are_augmented_each_on_its_own(replay, augmented):
    """The images of TASKS are all different: each that is not in the data set was changed."""
    known = {tuple(x.flatten().tolist()) for x in DATA.train_x}

    class Seen(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.parts: list[tuple[float, float]] = []

        def before_forward(self, strategy, **kwargs):
            changed = [tuple(x.flatten().tolist()) not in known for x in strategy.mb_x]
            if len(changed) == 2 * strategy.train_mb_size:
                new, old = changed[: strategy.train_mb_size], changed[strategy.train_mb_size :]
                self.parts.append((sum(new) / len(new), sum(old) / len(old)))

    augmentation, seen = Augmentation(flips=True, padding=1, augmented=augmented), Seen()
    if replay == "ours":
        plugins, make = (augmentation.new, ReplayPlugin(40), augmentation, seen), Naive
    else:
        plugins, make = (augmentation.new, augmentation, seen), partial(Replay, mem_size=40)
    train(make, TASKS, InMemoryLoading(), *plugins, experiences=TASKS.train_stream[:2])
    new, old = torch.tensor(seen.parts).mean(0)
    assert (new > 0.8) == (augmented != "buffer")
    assert (old > 0.8) == (augmented != "stream")
    assert {float(new), float(old)} & {0.0} or augmented == "both"


def test_several_steps_in_a_row_on_a_minibatch():
    """The same minibatches in the same order, each k times, and what is replayed beside them drawn anew."""
    once, thrice = Recorder(), Recorder()
    train(Naive, TASKS, InMemoryLoading(), once)
    train(Naive, TASKS, InMemoryLoading(iterations=3), thrice)
    for single, repeated in zip(once.epochs, thrice.epochs, strict=True):
        minibatches = [single[first : first + 32] for first in range(0, len(single), 32)]
        assert repeated == [sample for minibatch in minibatches for _ in range(3) for sample in minibatch]

    replayed = Recorder()
    train(Naive, TASKS, InMemoryLoading(iterations=3), ReplayPlugin(60), replayed)
    second = replayed.epochs[2][: 3 * 64]
    new, old = zip(
        *((second[first : first + 32], second[first + 32 : first + 64]) for first in (0, 64, 128)), strict=True
    )
    assert new[0] == new[1] == new[2]
    assert len({tuple(part) for part in old}) == 3
    assert {task for part in old for _, _, task in part} == {0}


def test_several_steps_in_a_row_are_those_of_a_plain_loop():
    x, y, _ = tensors_of(TASKS.train_stream[0].dataset)
    plain, trained = (seeded_mlp() for _ in range(2))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    order = torch.Generator().manual_seed(0)
    for _ in range(2):
        for indices in torch.randperm(len(x), generator=order).split(32):
            for _ in range(3):
                optimizer.zero_grad()
                nn.functional.cross_entropy(plain(x[indices]), y[indices]).backward()
                optimizer.step()
    Naive(
        model=trained,
        optimizer=torch.optim.SGD(trained.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=2,
        plugins=[InMemoryLoading(iterations=3)],
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
    ).train(TASKS.train_stream[0])
    for name, value in plain.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


def seeded_mlp():
    torch.manual_seed(0)
    return SimpleMLP(num_classes=2, input_size=64, hidden_size=16, drop_rate=0)


def test_who_loads_minibatches_by_itself_takes_one_step_on_each():
    with pytest.raises(UserError, match="iterations_per_batch = 2: the strategy loads its minibatches itself"):
        train(Replay, TASKS, InMemoryLoading(iterations=2), mem_size=50)


def test_an_experience_in_its_own_order_and_what_is_gathered_shuffled():
    stream = make_benchmark(DATA, gradual("class", 0.5), "class", "test", seed=0)
    experiences = stream.train_stream[:2]
    in_order = [
        [(tuple(x.flatten().tolist()), int(y), 0) for x, y, _ in experience.dataset] for experience in experiences
    ]

    def visited(make, experiences, **kwargs):
        recorder = Recorder()
        model = SimpleMLP(num_classes=10, input_size=64, hidden_size=16)
        strategy = make(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            criterion=nn.CrossEntropyLoss(),
            plugins=[InMemoryLoading(in_order=True), recorder],
            train_mb_size=32,
            evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
            **kwargs,
        )
        for experience in experiences:
            strategy.train(experience)
        return recorder.epochs

    assert visited(Naive, experiences) == in_order
    both = in_order[0] + in_order[1]
    for found in (visited(JointTraining, [experiences])[0], visited(Cumulative, experiences)[1]):
        assert sorted(found) == sorted(both)
        classes = [label for _, label, _ in found]
        assert len(set(classes[:32])) > 2, "not one experience after the other"
    with pytest.raises(UserError, match="boundaries = 'gradual': the strategy loads its minibatches itself"):
        visited(Replay, experiences, mem_size=50)
