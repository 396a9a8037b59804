"""Generative replay on the streams that people bring: without classes or tasks, in pieces, of vectors, of doubles."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    split_online_stream,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.scenarios.online import split_continuous_linear_decay_stream
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset, make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.models import IncrementalClassifier, SimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from engrams.strategies import DeepGenerativeReplay, EWCPlugin, MeRGAN
from engrams.strategies.answers import Answers
from engrams.strategies.baselines import FrozenBackbonePlugin, ReplayPlugin
from engrams.strategies.dgr import Scholar
from engrams.strategies.experience_replay import ExperienceReplayPlugin
from engrams.strategies.experiences import Met, Pieces, classes_of
from engrams.strategies.generator_training import GeneratorPlugin
from engrams.strategies.generators import ACGAN, VAE, WGANGP, Generator, ImageSpec, NoiseImages, PastImages
from engrams.strategies.heads import MASKED
from engrams.strategies.mergan import GANJointTraining, JointReplayGAN

SPEC = ImageSpec((1, 8, 8))
SAMPLES = 30


def dataset(t, shape=SPEC.shape, dtype=torch.float32):
    """Experience t has classes 2t and 2t + 1; class c is black but for its c-th row or value."""
    y = torch.arange(SAMPLES) % 2 + 2 * t
    x = torch.zeros(SAMPLES, *shape, dtype=dtype)
    if len(shape) == 1:
        x[torch.arange(SAMPLES), y] = 1
    else:
        x[torch.arange(SAMPLES), 0, y] = 1
    return x, y


def streams(shape=SPEC.shape, dtype=torch.float32, experiences=3):
    """Kind -> experiences, as people make them."""
    data = [dataset(t, shape, dtype) for t in range(experiences)]

    def targeted(x, y):
        tensors = TensorDataset(x, y)
        tensors.targets = y.tolist()
        return tensors

    plain = [as_classification_dataset(targeted(x, y)) for x, y in data]
    with_tasks = [
        AvalancheDataset(
            [TensorDataset(x, y)],
            data_attributes=[DataAttribute(y.tolist(), "targets"), TaskLabels([0] * len(y))],
        )
        for x, y in data
    ]
    bare = [make_avalanche_dataset(TensorDataset(x, y)) for x, y in data]
    return {
        "nothing": benchmark_from_datasets(train=plain).train_stream,
        "classes": with_classes_timeline(benchmark_from_datasets(train=plain)).train_stream,
        "tasks": with_task_labels(benchmark_from_datasets(train=with_tasks)).train_stream,
        "classes and tasks": with_task_labels(
            with_classes_timeline(benchmark_from_datasets(train=with_tasks))
        ).train_stream,
        "bare datasets": benchmark_from_datasets(train=bare).train_stream,
    }


KINDS = ("nothing", "classes", "tasks", "classes and tasks", "bare datasets")


class BrightestRow(nn.Module):
    def forward(self, x):
        return x.mean(dim=(1, 3))


def evaluator():
    return EvaluationPlugin(accuracy_metrics(experience=True), loggers=[BaseLogger()])


def solver(shape=SPEC.shape, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 16), nn.ReLU(), nn.Linear(16, 6)).to(dtype)


def template(model, *plugins, epochs=2):
    return {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), 0.01),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 10,
        "train_epochs": epochs,
        "plugins": list(plugins),
        "evaluator": evaluator(),
    }


def gan(kind=ACGAN, spec=SPEC, **options):
    settings = {"steps": 3, "batch_size": 12, "latent_size": 4, "width": 8, "critic_steps": 1, "seed": 0}
    return kind(spec, **settings | options)


def accuracies(results):
    return [value for key, value in results.items() if key.startswith("Top1_Acc_Exp/eval_phase")]


# --- without classes or tasks -----------------------------------------------------------------------------------------

OF_IMAGES = {
    "vae": lambda: VAE(SPEC, 1, seed=0, latent_size=4, hidden_sizes=(16,)),
    "wgan-gp": lambda: WGANGP(SPEC, 1, seed=0, latent_size=4, width=16),
    "past": lambda: PastImages(SPEC, 0),
    "noise": lambda: NoiseImages(SPEC, 0),
    "mergan": lambda: gan(JointReplayGAN),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("generator", OF_IMAGES.values(), ids=OF_IMAGES)
def test_a_scholar_learns_any_stream_and_what_it_learns_is_the_same(kind, generator):
    """What an experience says of itself changes nothing where there is one head."""
    learned = []
    for name in ("classes and tasks", kind):
        experiences = streams()[name]
        strategy = DeepGenerativeReplay(generator=generator(), **template(solver()))
        strategy.eval(experiences)
        torch.manual_seed(1)
        for experience in experiences:
            strategy.train(experience)
        assert len(accuracies(strategy.eval(experiences))) == 3
        assert strategy.classes_so_far == [0, 1, 2, 3, 4, 5]
        assert strategy.new_share == 1 / 4
        learned.append(strategy.generator.sample(5))
    assert torch.equal(*learned)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", [MeRGAN, GANJointTraining])
def test_a_gan_is_judged_on_any_stream(kind, strategy):
    class Known(JointReplayGAN):
        """Makes class c, but class 3 as class 2."""

        def of_class(self, label, n):
            x = torch.zeros(n, *SPEC.shape)
            x[:, 0, 2 if label == 3 else label] = 1
            return x

    experiences = streams()[kind]
    judged = strategy(
        generator=gan(Known, classes=6),
        classifier=BrightestRow(),
        images_per_class=20,
        eval_mb_size=7,
        evaluator=evaluator(),
    )
    judged.eval(experiences)
    for experience in [experiences] if strategy is GANJointTraining else experiences:
        judged.train(experience)
    assert judged.classes_so_far == judged.generator.known == [0, 1, 2, 3, 4, 5]
    assert accuracies(judged.eval(experiences)) == [1.0, 0.5, 1.0]


def test_a_gan_is_not_judged_where_tasks_share_an_experience():
    x, y = dataset(0)
    both = AvalancheDataset(
        [TensorDataset(x, y)],
        data_attributes=[DataAttribute(y.tolist(), "targets"), TaskLabels((torch.arange(SAMPLES) % 2).tolist())],
    )
    experiences = with_task_labels(benchmark_from_datasets(train=[both])).train_stream
    judged = MeRGAN(generator=gan(classes=2), classifier=BrightestRow(), images_per_class=4, evaluator=evaluator())
    with pytest.raises(ValueError, match=r"this experience has several task labels: \[0, 1\]"):
        judged.eval(experiences)


def test_what_an_experience_does_not_say_is_read_from_its_data():
    for kind in KINDS:
        assert sorted(classes_of(streams()[kind][1])) == [2, 3], kind
        assert Pieces(None).begin(streams()[kind][1])
        assert Pieces(None).end(streams()[kind][1])


def test_what_says_nothing_has_no_classes_and_is_task_0():
    assert Met.of(object()) == ((), [0])


# --- in pieces --------------------------------------------------------------------------------------------------------


def in_pieces(size=10, boundaries=True, **options):
    whole = with_classes_timeline(benchmark_from_datasets(train=[dataset_with_targets(t) for t in range(3)]))
    return split_online_stream(whole.train_stream, size, access_task_boundaries=boundaries, **options)


def dataset_with_targets(t):
    x, y = dataset(t)
    tensors = TensorDataset(x, y)
    tensors.targets = y.tolist()
    return as_classification_dataset(tensors)


class Shares(GeneratorPlugin):
    def __init__(self):
        super().__init__()
        self.shares, self.previous = [], []

    def before_training_epoch(self, strategy, **kwargs):
        self.shares.append(strategy.new_share)
        self.previous.append(strategy.previous)


@pytest.mark.parametrize(
    ("r", "expected"), [("experiences", [1, 1 / 2, 1 / 3]), ("classes", [1, 1 / 2, 1 / 3]), (0.3, [1, 0.3, 0.3])]
)
def test_a_stream_in_pieces_has_as_many_experiences_as_the_whole(r, expected):
    shares = Shares()
    strategy = DeepGenerativeReplay(generator=OF_IMAGES["vae"](), r=r, **template(solver(), shares, epochs=1))
    for piece in in_pieces():
        strategy.train(piece)
    assert shares.shares == pytest.approx([share for share in expected for _ in range(3)])
    assert [len({id(one) for one in shares.previous[3 * t : 3 * t + 3]}) for t in range(3)] == [1, 1, 1]
    assert shares.previous[0] is None
    assert len({id(one) for one in shares.previous}) == 3


def test_a_new_scholar_begins_with_an_experience_and_not_with_a_piece():
    began = []

    def fresh(t):
        began.append(t)
        return Scholar(OF_IMAGES["vae"](), solver())

    strategy = DeepGenerativeReplay(generator=OF_IMAGES["vae"](), new_scholar=fresh, **template(solver(), epochs=1))
    for piece in in_pieces():
        strategy.train(piece)
    assert began == [1, 2]


@pytest.mark.parametrize(
    ("size", "options", "pieces"), [(10, {}, 3), (7, {}, 5), (7, {"drop_last": True}, 4), (30, {}, 1)]
)
def test_experiences_begin_and_end_with_their_first_and_last_piece(size, options, pieces):
    """Avalanche calls no piece the last where the size divides the experience."""
    boundaries, found = Pieces(None), []
    for piece in in_pieces(size, **options):
        found.append((boundaries.begin(piece), boundaries.end(piece)))
    expected = [(n == 0, n == pieces - 1) for n in range(pieces)] * 3
    assert found == expected
    assert sorted(Met.of(piece).classes_in_this_experience) == [4, 5]


def naive(plugin):
    model = SimpleMLP(num_classes=6, input_size=64, hidden_size=8, drop_rate=0)
    return Naive(**template(model, plugin, epochs=1))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: naive(EWCPlugin(1.0)), id="ewc"),
        pytest.param(lambda: naive(FrozenBackbonePlugin()), id="frozen"),
        pytest.param(lambda: naive(ReplayPlugin(6)), id="replay"),
        pytest.param(lambda: naive(ExperienceReplayPlugin(6, draws_from="past")), id="er"),
        pytest.param(
            lambda: DeepGenerativeReplay(generator=OF_IMAGES["vae"](), **template(solver(), epochs=1)), id="dgr"
        ),
    ],
)
@pytest.mark.parametrize(
    ("order", "warns"),
    [
        pytest.param((0, 0, 1), True, id="epochs by a loop around train"),
        pytest.param((0, 1, 0, 1), False, id="a stream that comes back"),
    ],
)
def test_epochs_that_are_counted_as_experiences_are_warned_of(make, order, warns):
    experiences = list(streams()["classes"])
    strategy = make()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for place in order:
            strategy.train(experiences[place])
    assert len(told_of_epochs(said)) == warns


def told_of_epochs(said):
    """Who has warned."""
    messages = [str(one.message) for one in said]
    return [one.partition(":")[0] for one in messages if "its epochs are the strategy's train_epochs" in one]


def test_pieces_that_repeat_are_warned_of_once_an_experience():
    plugin, pieces = EWCPlugin(1.0), list(in_pieces())
    strategy = naive(plugin)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for piece in [*pieces[:3], *pieces[:3], *pieces[3:6]]:
            strategy.train(piece)
    assert plugin.consolidated == 3
    assert told_of_epochs(said) == ["EWCPlugin"]


def test_where_pieces_are_can_be_pickled():
    boundaries, piece = Pieces(None), next(iter(in_pieces(30)))
    boundaries.begin(piece)
    boundaries.end(piece)
    assert pickle.loads(pickle.dumps(boundaries)).met == 1


@pytest.mark.parametrize("make", [lambda: EWCPlugin(1.0), FrozenBackbonePlugin, lambda: ReplayPlugin(6)])
def test_pieces_of_several_experiences_are_learned(make):
    """Avalanche's stream that passes over by degrees names no experience that its pieces are of."""
    strategy = naive(make())
    for piece in split_continuous_linear_decay_stream(streams()["classes"], 5, 4, 0.5, shuffle=True):
        strategy.train(piece)


def test_hidden_boundaries_are_refused_before_anything_is_trained():
    strategy = DeepGenerativeReplay(generator=OF_IMAGES["vae"](), **template(solver(), Untouched()))
    piece = next(iter(in_pieces(boundaries=False))).train()
    with pytest.raises(ValueError, match="the stream hides where an experience ends"):
        strategy.train(piece)


def test_a_buffer_holds_an_equal_share_of_whole_experiences():
    replay = ReplayPlugin(12)
    strategy = DeepGenerativeReplay(generator=PastImages(SPEC, 0), r=1, **template(solver(), replay, epochs=1))
    seen = []
    for number, piece in enumerate(in_pieces()):
        strategy.train(piece)
        if number % 3 == 2:
            labels = replay._buffer[1]
            seen.append([int((labels // 2 == t).sum()) for t in range(3)])
    assert seen == [[12, 0, 0], [6, 6, 0], [4, 4, 4]]
    rows = {tuple(x.flatten().tolist()) for x in replay._buffer[0]}
    assert len(rows) > 3, "of all pieces"


def test_a_backbone_is_frozen_when_the_first_experience_is_over():
    torch.manual_seed(0)
    model = SimpleMLP(num_classes=6, input_size=64, hidden_size=8, drop_rate=0)
    strategy = DeepGenerativeReplay(
        generator=PastImages(SPEC, 0), r=1, **template(model, FrozenBackbonePlugin(), epochs=1)
    )
    moved = []
    for piece in in_pieces():
        before = model.features[0].weight.detach().clone()
        strategy.train(piece)
        moved.append(not torch.equal(before, model.features[0].weight))
    assert moved == [True] * 3 + [False] * 6


# --- vectors, other types, and what cannot be learned -----------------------------------------------------------------

VECTORS = ImageSpec((6,), -math.inf, math.inf)
OF_VECTORS = {
    "vae": lambda spec: VAE(spec, 30, 10, 0, 4, (16,), 1e-2, "gaussian"),
    "wgan-gp": lambda spec: WGANGP(spec, 60, 10, 0, latent_size=4, width=16, learning_rate=1e-3),
    "past": lambda spec: PastImages(spec, 0),
    "noise": lambda spec: NoiseImages(spec, 0),
}


@pytest.mark.parametrize("generator", OF_VECTORS.values(), ids=OF_VECTORS)
@pytest.mark.parametrize("spec", [VECTORS, ImageSpec((6,), -1.0, 2.0)], ids=["no bounds", "bounds"])
def test_a_stream_of_vectors_is_learned_and_remembered(generator, spec):
    experiences = streams((6,), experiences=2)["classes"]
    strategy = DeepGenerativeReplay(generator=generator(spec), **template(solver((6,)), epochs=20))
    for experience in experiences:
        strategy.train(experience)
    first, second = accuracies(strategy.eval(experiences))
    assert second > 0.95
    if not isinstance(strategy.generator, NoiseImages):
        assert first > 0.7
    assert strategy.generator.sample(4).shape == (4, 6)


@pytest.mark.parametrize("generator", OF_IMAGES.values(), ids=OF_IMAGES)
def test_scholars_of_doubles_work(generator):
    strategy = DeepGenerativeReplay(
        generator=generator().double(), replay_labels="soft", **template(solver(dtype=torch.float64))
    )
    for experience in streams(dtype=torch.float64)["nothing"]:
        strategy.train(experience)
    assert strategy.generator.sample(2).dtype == torch.float64


class Untouched(GeneratorPlugin):
    """Nothing may have been trained when an error is raised."""

    def before_training_epoch(self, strategy, **kwargs):
        pytest.fail("the solver is trained")

    def after_generator_epoch(self, strategy, **kwargs):
        pytest.fail("the generator has been trained")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(20, 64), torch.arange(20) % 2, r"of shape \(1, 8, 8\); the stream's have shape \(64,\)"),
        (torch.zeros(20, 1, 8, 8).double(), torch.arange(20) % 2, "networks are float32 .* images float64"),
        (torch.full((20, 1, 8, 8), 7.0), torch.arange(20) % 2, "between low and high"),
        (
            torch.zeros(20, 1, 8, 8),
            torch.rand(20),
            r"labels must be classes, integers \[N\]; .* float32 of shape \[20\]",
        ),
        (torch.zeros(20, 1, 8, 8), torch.zeros(20, 3).long(), r"labels must be classes, .* int64 of shape \[20, 3\]"),
    ],
    ids=["shape", "type", "range", "regression", "several labels"],
)
def test_what_cannot_be_learned_is_refused_before_anything_is(x, y, message):
    experiences = benchmark_from_datasets(train=[make_avalanche_dataset(TensorDataset(x, y))]).train_stream
    for strategy in (
        DeepGenerativeReplay(generator=OF_IMAGES["vae"](), **template(solver(), Untouched())),
        MeRGAN(generator=gan(), plugins=[Untouched()], evaluator=evaluator()),
    ):
        before = copy.deepcopy(list(strategy.model.parameters()))
        with pytest.raises(ValueError, match=message):
            strategy.train(experiences)
        assert all(torch.equal(p, q) for p, q in zip(strategy.model.parameters(), before, strict=True))


def test_samples_of_several_parts_are_refused():
    class Parts(torch.utils.data.Dataset):
        targets = (0, 1)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"image": torch.zeros(1, 8, 8), "mask": torch.zeros(1)}, index

    experiences = benchmark_from_datasets(train=[make_avalanche_dataset(Parts())]).train_stream
    strategy = DeepGenerativeReplay(generator=OF_IMAGES["vae"](), **template(solver(), Untouched()))
    with pytest.raises(
        ValueError, match="learns samples of one tensor and its class; the experience's batches hold: dict"
    ):
        strategy.train(experiences)


def test_workers_load_the_generators_images_too(monkeypatch):
    asked = []
    from engrams.strategies import generator_training

    real = generator_training.DataLoader
    monkeypatch.setattr(
        generator_training,
        "DataLoader",
        lambda *args, num_workers, **kwargs: asked.append(num_workers) or real(*args, **kwargs),
    )
    strategy = DeepGenerativeReplay(generator=PastImages(SPEC, 0), **template(solver()))
    monkeypatch.setattr(strategy, "make_train_dataloader", lambda **kwargs: setattr(strategy, "dataloader", []))
    strategy.train(streams()["nothing"][0], num_workers=3)
    MeRGAN(generator=gan(steps=1), evaluator=evaluator()).train(streams()["nothing"][0])
    assert asked == [3, 0]


def test_samples_are_put_together_as_the_data_set_says():
    def brighter(samples):
        x, y, task = (torch.stack([torch.as_tensor(part) for part in column]) for column in zip(*samples, strict=True))
        return x + 0.25, y, task

    x, y = dataset(0)
    data = make_avalanche_dataset(TensorDataset(x / 2, y, torch.zeros_like(y)), collate_fn=brighter)
    strategy = DeepGenerativeReplay(generator=PastImages(SPEC, 0), **template(solver(), epochs=1))
    strategy.train(benchmark_from_datasets(train=[data]).train_stream[0])
    assert set(strategy.generator.sample(20).unique().tolist()) == {0.25, 0.75}


# --- a generator of one's own -----------------------------------------------------------------------------------------


class Rows(Generator):
    """A conditional generator of one's own: it remembers the mean image of every class."""

    conditional = True

    def __init__(self, images):
        super().__init__(images)
        self.means = {}

    def learn(self, images, replay=None, r=1.0, labels=None):
        self.check(images)
        for label in labels.unique().tolist():
            self.means[label] = images[labels == label].mean(dim=0)
        yield from ()

    def sample_labelled(self, n):
        classes = torch.tensor(sorted(self.means))
        labels = classes[torch.randint(len(classes), (n,), generator=self.random)]
        return torch.stack([self.means[label] for label in labels.tolist()]), labels

    def sample(self, n):
        return self.sample_labelled(n)[0]


def test_a_conditional_generator_of_ones_own_is_a_memory():
    strategy = DeepGenerativeReplay(generator=Rows(SPEC), replay_labels="asked", **template(solver(), epochs=20))
    experiences = streams()["classes"]
    for experience in experiences:
        strategy.train(experience)
    assert accuracies(strategy.eval(experiences)) == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="one that replays by itself"):
        DeepGenerativeReplay(generator=Rows(SPEC), new_scholar=lambda t: None, **template(solver()))


class Own(Generator):
    """One of one's own, which checks nothing and makes flat images."""

    def learn(self, images, replay=None, r=1.0, labels=None):
        yield from ()

    def sample(self, n):
        return torch.zeros(n, 64)


def test_what_ones_own_generator_is_shown_and_makes_is_checked():
    strategy = DeepGenerativeReplay(generator=Own(ImageSpec((64,))), **template(solver(), Untouched()))
    with pytest.raises(ValueError, match=r"of shape \(64,\); the stream's have shape \(1, 8, 8\)"):
        strategy.train(streams()["nothing"][0])
    strategy = DeepGenerativeReplay(generator=Own(SPEC), **template(solver()))
    first, second, _ = streams()["nothing"]
    strategy.train(first)
    with pytest.raises(ValueError, match=r"of shape \(1, 8, 8\); it makes some of shape \(64,\)"):
        strategy.train(second)


def of_one_output(criterion):
    return lambda outputs, y: criterion(outputs.flatten(), y.float())


@pytest.mark.parametrize(
    ("outputs", "labels", "criterion", "message"),
    [
        (1, "hard", of_one_output(functional.mse_loss), "criterion .* is no binary cross-entropy between its logit"),
        (1, "soft", lambda outputs, y: (1 - outputs.flatten() * (2 * y - 1)).relu().mean(), "is no binary"),
        (1, "hard", of_one_output(lambda logit, y: functional.binary_cross_entropy_with_logits(logit, 1 - y)), "is no"),
        (1, "hard", of_one_output(lambda z, y: functional.binary_cross_entropy(z.clamp(0.01, 0.99), y)), "is no"),
        (1, "hard", nn.CrossEntropyLoss(), r"criterion \(CrossEntropyLoss\) is no binary"),
        ((2, 3), "hard", nn.CrossEntropyLoss(), r"outputs \[N, classes\], .*; the solver's are \[3, 2, 3\]"),
        (
            6,
            "soft",
            nn.NLLLoss(),
            r"takes probabilities .* \['N', 6\], .* NLLLoss takes none \(Run.*'hard'$",
        ),
        (6, "soft", nn.MultiMarginLoss(), "MultiMarginLoss takes none"),
        (6, "soft", lambda z, y: functional.mse_loss(z, functional.one_hot(y, 6).float()), "takes none"),
    ],
    ids=[
        *("squared error", "hinge", "other way round", "a probability", "one of several classes", "positions"),
        *("nll", "margin", "one-hot"),
    ],
)
def test_labels_that_a_criterion_cannot_take_are_refused_before_anything_is_learned(
    outputs, labels, criterion, message
):
    shape = outputs if isinstance(outputs, tuple) else (outputs,)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, math.prod(shape)), nn.Unflatten(1, shape))
    strategy = DeepGenerativeReplay(
        generator=OF_IMAGES["vae"](), replay_labels=labels, **template(model, Untouched()) | {"criterion": criterion}
    )
    with pytest.raises(ValueError, match=message) as raised:
        strategy.train(streams(experiences=1)["nothing"][0])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [((torch.zeros(5, 2), torch.zeros(5)), "the solver's are tuple"), (torch.zeros(5), "has one output a sample")],
)
def test_no_label_is_read_off_what_is_no_answer(outputs, message):
    with pytest.raises(ValueError, match=message):
        Answers("hard", outputs, torch.zeros(5, dtype=torch.long), functional.mse_loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_logit_is_known_under_a_weight_for_each_of_two_classes_in_any_precision(dtype):
    weights = torch.tensor([1.0, 3.0], dtype=dtype)

    def criterion(logit, y):
        assert logit.dtype == dtype
        return functional.binary_cross_entropy_with_logits(logit.flatten(), y.to(dtype), weights[y])

    assert Answers("hard", torch.zeros(5, 1, dtype=dtype), torch.zeros(5, dtype=torch.long), criterion).one_logit


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_criterion_is_asked_aside(labels):
    """Neither what it remembers nor what it draws is noticed by the training."""

    class Remembers(nn.Module):
        calls = 0

        def forward(self, outputs, y):
            self.calls += 1
            torch.rand(1)
            return functional.binary_cross_entropy_with_logits(outputs[:, 0], y.float())

    criterion, before = Remembers(), torch.get_rng_state()
    read = Answers(labels, torch.zeros(5, 1), torch.zeros(5, dtype=torch.long), criterion)
    assert read(torch.tensor([[0.0], [50.0]]), torch.zeros(2, 1)).tolist() == [0.0 if labels == "hard" else 0.5, 1.0]
    assert criterion.calls == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_growing_heads_learn_in_pieces_too():
    model = SimpleMLP(num_classes=2, input_size=64, hidden_size=8, drop_rate=0)
    model.classifier = IncrementalClassifier(8, initial_out_features=2)
    strategy = DeepGenerativeReplay(generator=OF_IMAGES["vae"](), **template(model, epochs=1))
    for piece in in_pieces():
        strategy.train(piece)
    assert [sorted(met.classes_in_this_experience) for met in strategy._past] == [[0, 1], [2, 3], [4, 5]]
    assert model.classifier.classifier.out_features == 6


def one_hot(y):
    return y if y.is_floating_point() else functional.one_hot(y, 3).float()


FOCAL = lambda z, y: ((1 - z.softmax(1)) ** 2 * -z.log_softmax(1) * one_hot(y)).sum(1).mean()  # noqa: E731
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.3, 0.9]])
PROBABILITIES = LOGITS.softmax(1)


@pytest.mark.parametrize(
    ("criterion", "outputs", "expected"),
    [
        (nn.CrossEntropyLoss(), LOGITS, PROBABILITIES),
        (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1), LOGITS, PROBABILITIES),
        (lambda z, y: functional.cross_entropy(z, y, torch.tensor([1.0, 2.0, 3.0])), LOGITS, PROBABILITIES),
        (lambda z, y: -(one_hot(y) * z).sum(1).mean(), PROBABILITIES.log(), PROBABILITIES),
        (lambda z, y: functional.mse_loss(z, one_hot(y)), LOGITS, LOGITS),
        (lambda z, y: functional.binary_cross_entropy_with_logits(z, one_hot(y)), LOGITS, LOGITS.sigmoid()),
        (lambda z, y: functional.binary_cross_entropy(z, one_hot(y)), LOGITS.sigmoid(), LOGITS.sigmoid()),
    ],
    ids=["torch's", "weights", "own weights", "log-probabilities", "squared error", "binary", "binary probabilities"],
)
def test_soft_labels_are_what_the_criterion_says_that_outputs_mean(criterion, outputs, expected):
    """So the previous solver's own answers have the least loss."""
    read = Answers("soft", outputs, torch.tensor([0, 2]), criterion)
    torch.testing.assert_close(read(outputs, outputs), expected)
    assert read(outputs, torch.zeros(2, 5))[:, 3:].eq(0).all(), "of classes that it has not met"


def test_what_is_masked_is_no_squared_error():
    read = Answers("soft", LOGITS, torch.tensor([0, 2]), lambda z, y: functional.mse_loss(z, one_hot(y)))
    assert read(torch.tensor([[1.0, 0.5, MASKED]]), torch.zeros(1, 3)).tolist() == [[1.0, 0.5, 0.0]]


def test_a_head_of_one_class_so_far_has_soft_labels_under_ones_own_criterion():
    read = Answers("soft", torch.zeros(2, 1), torch.zeros(2).long(), lambda z, y: functional.cross_entropy(z, y))
    assert read(torch.tensor([[3.0]]), torch.zeros(1, 2)).tolist() == [[1.0, 0.0]]


def test_soft_labels_are_refused_where_the_criterion_does_not_say_what_outputs_mean():
    message = r"says what .* outputs mean: .* <lambda> is none of them. Take replay_labels='hard', or let forward"
    with pytest.raises(ValueError, match=message) as raised:
        Answers("soft", LOGITS, torch.tensor([0, 2]), FOCAL)
    assert "\n" not in str(raised.value)
    assert Answers("hard", LOGITS, torch.tensor([0, 2]), FOCAL)(LOGITS, LOGITS).tolist() == [0, 2]
