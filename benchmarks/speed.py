"""What loading, penalties, importances and logging cost, side by side in one process and as ratios.

The yardsticks are Avalanche's strategy as its users run it, and the same training loop written out in plain PyTorch.
Times are medians over repeats that take turns, since the machine's own speed drifts.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import get_args

import psutil
import torch
from avalanche.benchmarks.classic import PermutedMNIST, SplitMNIST
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.models import SimpleMLP
from avalanche.training import EWC, GenerativeReplay, Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import Tensor, nn
from torch.nn import functional

from engrams.benchmarks.data import datasets
from engrams.benchmarks.data.loading import InMemoryLoading, tensors_of
from engrams.benchmarks.data.streams import make_benchmark, prepared
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import run_of
from engrams.benchmarks.protocols import registry as protocol
from engrams.benchmarks.protocols.schema import Images, PermutedStream
from engrams.benchmarks.speed_resnet import EpochClock, one_pass, one_thread
from engrams.benchmarks.training.build import benchmark_of, make_strategy
from engrams.benchmarks.training.networks import ReducedResNet
from engrams.reports.render import Sheet
from engrams.reports.wandb.sending import Sending
from engrams.reports.wandb.settings import WandBSettings
from engrams.strategies import EWCPlugin
from engrams.strategies.contract import GANSettings
from engrams.strategies.generators import ACGAN, ImageSpec
from engrams.strategies.generators.acgan import ConditionalNetwork, Critic
from engrams.strategies.importance import Fisher, MASVariant, diagonal_fisher, mas_importance
from engrams.strategies.mergan import JointReplayGAN, ReplayAlignmentGAN

BATCH, WIDTH, REPEATS = 256, 100, 7
LAMBDA = 100.0
GAN_PROTOCOL = "generate-mnist"
LOGGED = "split-digits/class"
RESNET_IMAGES, RESNET_BATCH = 320, 32
GOALS = {"empirical Fisher": 1.7, "MAS importance": 1.7, "exact Fisher of 10 classes": 9.0}
"""What importances of a reduced ResNet-18 may cost, in training epochs."""


def measure(show: Callable[[list[Sheet]], None]) -> None:
    """Measures everything and shows it; takes about ten minutes on two cores.

    Args:
        show: is given each table when it is measured.

    Raises:
        DataError: MNIST is not here and cannot be downloaded.
    """
    data = prepared("mnist", Images())
    stream = PermutedStream(kind="permuted", experiences=2, validation_fraction=0.1)
    ours = make_benchmark(data, stream, "domain", "test", seed=0)
    root = datasets.find("mnist")
    theirs = PermutedMNIST(n_experiences=2, seed=0, dataset_root=root)
    rows = [row for part in (_loading(ours, theirs), _consolidations(ours), _importances(ours)) for row in part]
    show([_sheet(f"Speed: MLP {WIDTH}-{WIDTH} on Permuted MNIST, batch {BATCH}", "time", rows)])
    show([_sheet(f"Speed: logging to W&B, a run of ewc on {LOGGED}", "time", logging())])
    show([_sheet("Speed: a reduced ResNet-18 learns colour images, in minibatches of 10", "time", one_pass())])
    show([_sheet(f"Speed: importances of a reduced ResNet-18, {RESNET_IMAGES} images", "time", resnet_importances())])
    show([_sheet("Speed: generative replay on Split MNIST, class-incremental", "time", _scholars(root))])
    show([_sheet(f"Speed: a conditional GAN on {GAN_PROTOCOL}", "real images a second", _gans())])


def _sheet(title: str, second: str, rows: Iterable[tuple[str, str, str]]) -> Sheet:
    headings = ("measured", second, "ratio")
    return Sheet(title, [dict(zip(headings, row, strict=True)) for row in rows], headings, words=headings)


# --- (a), (b): a strategy against Avalanche's loading and against plain PyTorch ---------------------------------------


def _loading(ours, theirs) -> list[tuple[str, str, str]]:
    def avalanche(make: Callable, benchmark, *plugins: SupervisedPlugin) -> tuple[float, float]:
        """Seconds of the second experience's epoch, and of the whole experience with its importance pass."""
        model, clock = _network(), EpochClock(time.perf_counter)
        strategy = make(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), fused=True),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=BATCH,
            plugins=[*plugins, clock],
            evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[BaseLogger()]),
        )
        strategy.train(benchmark.train_stream[0])
        began = time.perf_counter()
        strategy.train(benchmark.train_stream[1])
        return clock.epochs[1], time.perf_counter() - began

    def avalanche_ewc(**template):
        return EWC(ewc_lambda=LAMBDA, mode="separate", **template)

    first, second = (_tensors(experience.dataset) for experience in ours.train_stream)
    shipped, same_loading, ewc, plain, naive, plain_naive = [], [], [], [], [], []
    for repeat in range(REPEATS):
        if repeat < 2:  # tens of times slower than the rest
            shipped.append(avalanche(avalanche_ewc, theirs))
        same_loading.append(avalanche(avalanche_ewc, ours, InMemoryLoading()))
        ewc.append(avalanche(Naive, ours, InMemoryLoading(), EWCPlugin(LAMBDA)))
        plain.append(_plain_ewc(first, second))
        naive.append(avalanche(Naive, ours, InMemoryLoading()))
        plain_naive.append(_plain_epoch(_network(), second, lambda: torch.zeros(())))

    def epoch(pairs):
        return statistics.median(pair[0] for pair in pairs)

    def whole(pairs):
        return statistics.median(pair[1] for pair in pairs)

    return [
        ("Avalanche's EWC as shipped, an experience", _s(whole(shipped)), "1"),
        (
            "Avalanche's EWC with our loading, an experience",
            _s(whole(same_loading)),
            _faster(shipped, same_loading, whole),
        ),
        ("our EWC (exact Fisher), an experience", _s(whole(ewc)), _faster(shipped, ewc, whole)),
        ("Avalanche's EWC as shipped, an epoch", _s(epoch(shipped)), "1"),
        ("Avalanche's EWC with our loading, an epoch", _s(epoch(same_loading)), _faster(shipped, same_loading, epoch)),
        ("our EWC, an epoch", _s(epoch(ewc)), _faster(shipped, ewc, epoch)),
        ("EWC in plain PyTorch, an epoch", _s(statistics.median(plain)), "1"),
        ("our EWC, an epoch", _s(epoch(ewc)), f"{epoch(ewc) / statistics.median(plain):.2f} x"),
        ("naive in plain PyTorch, an epoch", _s(statistics.median(plain_naive)), "1"),
        ("our naive, an epoch", _s(epoch(naive)), f"{epoch(naive) / statistics.median(plain_naive):.2f} x"),
    ]


def _faster(slow, fast, of) -> str:
    return f"{of(slow) / of(fast):.1f} times faster"


def _tensors(dataset) -> tuple[Tensor, Tensor]:
    tensors = tensors_of(dataset)
    assert tensors is not None
    return tensors[0], tensors[1]


def _network() -> nn.Module:
    torch.manual_seed(0)
    return SimpleMLP(input_size=784, hidden_size=WIDTH, hidden_layers=2, drop_rate=0)


def _plain_ewc(first, second) -> float:
    """The same loop, written out; returns the seconds of the second task's epoch."""
    model = _network()
    _plain_epoch(model, first, lambda: torch.zeros(()))
    fisher = diagonal_fisher(model, torch.utils.data.TensorDataset(*(t[:2000] for t in first)))
    anchors = {name: p.detach().clone() for name, p in model.named_parameters()}
    pairs = [(p, fisher[name], anchors[name]) for name, p in model.named_parameters()]

    def penalty() -> Tensor:
        return LAMBDA / 2 * sum(((f * (p - anchor) ** 2).sum() for p, f, anchor in pairs), torch.zeros(()))

    return _plain_epoch(model, second, penalty)


def _plain_epoch(model: nn.Module, data, penalty: Callable[[], Tensor]) -> float:
    x, y = data
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model.train()
    began = time.perf_counter()
    for indices in torch.randperm(len(x)).split(BATCH):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x[indices]), y[indices]) + penalty()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - began


# --- (c): a step of each consolidation --------------------------------------------------------------------------------


def _consolidations(ours) -> list[tuple[str, str, str]]:
    counts = (2, 10, 50)
    x, y = torch.randn(BATCH, 784), torch.randint(0, 10, (BATCH,))
    steps = {}
    for consolidation in ("separate", "corrected", "online"):
        for count in counts:
            model, plugin = (
                _network(),
                EWCPlugin(LAMBDA, consolidation, gamma=0.9 if consolidation == "online" else 1.0),
            )
            for _ in range(count):
                plugin.consolidate(
                    {name: torch.rand_like(p) for name, p in model.named_parameters()},
                    {name: p.detach().clone() for name, p in model.named_parameters()},
                )
            steps[consolidation, count] = stepper(model, plugin, ours.train_stream[0], x, y)
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    turns = random.Random(0)
    for _ in range(10 * REPEATS):
        # In a new order every time: whatever comes after fifty separate penalties finds the cache full of them.
        for key in turns.sample(list(steps), len(steps)):
            step = steps[key]
            step()
            began = time.perf_counter()
            for _ in range(5):
                step()
            seconds[key].append((time.perf_counter() - began) / 5)
    median = {key: statistics.median(values) for key, values in seconds.items()}
    return [
        (
            f"a step, {consolidation}, {count} experiences",
            f"{1000 * median[consolidation, count]:.2f} ms",
            f"{median[consolidation, count] / median[consolidation, counts[0]]:.2f} x",
        )
        for consolidation, count in median
    ]


def stepper(model: nn.Module, plugin: EWCPlugin, experience, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Returns a training step as a strategy takes it at the beginning of an experience."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)
    strategy = Naive(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), plugins=[plugin])
    strategy.experience = experience
    plugin.before_training_exp(strategy)

    def step() -> None:
        optimizer.zero_grad()
        strategy.loss = functional.cross_entropy(model(x), y)
        plugin.before_backward(strategy)
        strategy.loss.backward()
        optimizer.step()

    return step


# --- (d): Fishers -----------------------------------------------------------------------------------------------------


def _importances(ours) -> list[tuple[str, str, str]]:
    dataset = ours.train_stream[0].dataset
    data = _tensors(dataset)
    model = _network()
    fishers, variants = get_args(Fisher), get_args(MASVariant)
    measured: dict[str, Callable[[], object]] = {
        **{f"{kind} Fisher": partial(diagonal_fisher, model, dataset, kind, batch_size=BATCH) for kind in fishers},
        **{
            f"{kind} MAS importance": partial(mas_importance, model, dataset, kind, batch_size=BATCH)
            for kind in variants
        },
    }
    epochs: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(REPEATS):
        epochs.append(_plain_epoch(model, data, lambda: torch.zeros(())))
        for name, measure_importance in measured.items():
            began = time.perf_counter()
            measure_importance()
            seconds[name].append(time.perf_counter() - began)
    epoch = statistics.median(epochs)
    return [
        ("a training epoch in plain PyTorch", _s(epoch), "1"),
        *(
            (
                f"{name} of {len(dataset):,} images",
                _s(statistics.median(values)),
                f"{statistics.median(values) / epoch:.2f} epochs",
            )
            for name, values in seconds.items()
        ),
    ]


# --- (d2): importances of a network with batch norm -------------------------------------------------------------------


def resnet_importances(repeats: int = 3, images: int = RESNET_IMAGES) -> list[tuple[str, str, str]]:
    """Of random images, since what they show costs nothing, beside a training epoch; seconds of one processor."""
    torch.manual_seed(0)
    model = ReducedResNet(3, width=20, classes=10)
    dataset = torch.utils.data.TensorDataset(torch.randn(images, 3, 32, 32), torch.arange(images) % 10)
    measured: dict[str, Callable[[], object]] = {
        "empirical Fisher": partial(diagonal_fisher, model, dataset, "empirical", batch_size=RESNET_BATCH),
        "MAS importance": partial(mas_importance, model, dataset, batch_size=RESNET_BATCH),
        "exact Fisher of 10 classes": partial(diagonal_fisher, model, dataset, batch_size=RESNET_BATCH),
    }
    epochs: dict[str, list[float]] = {name: [] for name in measured}  # just before, since the machine's speed drifts
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    with one_thread():
        for _ in range(repeats):
            for name, measure_importance in measured.items():
                epochs[name].append(_resnet_epoch(model, *dataset.tensors))
                began = time.process_time()
                measure_importance()
                seconds[name].append(time.process_time() - began)
    rows = [("a training epoch in plain PyTorch", _s(statistics.median(chain(*epochs.values()))), "1")]
    for name, goal in GOALS.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[name], epochs[name], strict=True))
        rows.append((name, _s(statistics.median(seconds[name])), f"{ratio:.2f} epochs (goal: {goal:g})"))
    return rows


def _resnet_epoch(model: nn.Module, x: Tensor, y: Tensor) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    began = time.process_time()
    for indices in torch.randperm(len(x)).split(RESNET_BATCH):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[indices]), y[indices]).backward()
        optimizer.step()
    return time.process_time() - began


# --- (e): an experience of generative replay --------------------------------------------------------------------------


def _scholars(root: Path | None) -> list[tuple[str, str, str]]:
    """A whole run: ours as Split MNIST has it, Avalanche's as its baselines do.

    Once each, since they take minutes; of Avalanche's only an epoch of the first and of the second experience, from
    which on all have replay alike.
    """
    entry = protocol.get("split-mnist/class")
    run = run_of(entry, "dgr-vae", 0)
    own = run_of(entry, "avalanche-generative-replay").hyperparameters.model_dump()
    benchmark = benchmark_of(run)
    strategy = make_strategy(run, benchmark, "cpu", [])
    ours = sum(_seconds(strategy, experience) for experience in benchmark.train_stream)
    model = SimpleMLP(hidden_size=400, hidden_layers=2, drop_rate=0)
    theirs = GenerativeReplay(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=own["batch_size"],
        train_epochs=1,
        replay_size=own["replay_size"],
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[BaseLogger()]),
    )
    theirs.generator_strategy.evaluator.loggers = []
    first, second, *rest = SplitMNIST(
        5, return_task_id=False, fixed_class_order=list(range(10)), dataset_root=root
    ).train_stream
    shipped = own["epochs"] * (_seconds(theirs, first) + (1 + len(rest)) * _seconds(theirs, second))
    return [
        (
            f"Avalanche's as its baselines run it, a run (from one of its {own['epochs']} epochs)",
            _s(shipped),
            "1",
        ),
        ("our dgr-vae, a run", _s(ours), f"{shipped / ours:.1f} times faster"),
    ]


def _seconds(strategy, experience) -> float:
    began = time.perf_counter()
    strategy.train(experience)
    return time.perf_counter() - began


# --- (f): a step of a conditional GAN ---------------------------------------------------------------------------------


def _gans() -> list[tuple[str, str, str]]:
    """The sixth class, after five: real images that the critic has seen, a second."""
    entry = protocol.get(GAN_PROTOCOL)
    assert entry.gan is not None
    data = prepared(entry.dataset, entry.images)
    assert isinstance(data.train_x, Tensor)
    past, new = list(range(5)), 5
    images = data.train_x[data.train_y == new]
    labels = torch.full((len(images),), new)
    images_a_step = entry.gan.critic_steps * entry.gan.batch_size
    steps: dict[str, Callable[[], object]] = {}
    for name, kind in (
        ("our ACGAN, fine-tuning", ACGAN),
        ("our MeRGAN, replay alignment", ReplayAlignmentGAN),
        ("our MeRGAN, joint training with replay", JointReplayGAN),
    ):
        gan = kind(ImageSpec(tuple(images.shape[1:])), classes=data.classes, **entry.gan.model_dump())
        gan.known = past
        gan.begin([new])
        steps[name] = partial(gan.step, gan.minibatches(gan.as_learned(images), labels))
    bare = _bare_gan(entry.gan, 2 * images - 1, labels, data.classes)
    steps = {"the bare GAN loop in plain PyTorch": bare, **steps}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(REPEATS + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(5):
                step()
            if repeat:  # the first one warms up
                seconds[name].append((time.perf_counter() - began) / 5)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    reference = next(iter(median.values()))
    return [
        (name, f"{images_a_step / value:,.0f}", "1" if value == reference else f"{value / reference:.2f} x the time")
        for name, value in median.items()
    ]


def _bare_gan(settings: GANSettings, x: Tensor, labels: Tensor, classes: int) -> Callable[[], None]:
    """Algorithm 1 of WGAN-GP with an auxiliary classifier, as one writes it down; one step of the generator."""
    shape = x.shape[1:]
    sizes = settings.width, settings.smallest_side, classes
    generator, critic = ConditionalNetwork(shape, settings.latent_size, *sizes), Critic(shape, *sizes)
    generator_optimizer, critic_optimizer = (
        torch.optim.Adam(network.parameters(), settings.learning_rate, betas=settings.betas)
        for network in (generator, critic)
    )
    label = labels[: settings.batch_size]

    def fake() -> Tensor:
        return generator(torch.randn(1, settings.batch_size, settings.latent_size), label[None])[0]

    def step() -> None:
        for _ in range(settings.critic_steps):
            real, made = x[torch.randint(len(x), (settings.batch_size,))], fake().detach()
            real_score, logits = critic(real)
            fake_score, _ = critic(made)
            epsilon = torch.rand(len(real), 1, 1, 1)
            between = (epsilon * real + (1 - epsilon) * made).requires_grad_()
            (gradient,) = torch.autograd.grad(critic(between)[0].sum(), between, create_graph=True)
            penalty = ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()
            loss = fake_score.mean() - real_score.mean() + settings.penalty * penalty
            critic_optimizer.zero_grad()
            (loss + functional.cross_entropy(logits, label)).backward()
            critic_optimizer.step()
        score, logits = critic(fake())
        generator_optimizer.zero_grad()
        (functional.cross_entropy(logits, label) - score.mean()).backward()
        generator_optimizer.step()

    return step


# --- (g): logging to W&B ----------------------------------------------------------------------------------------------


def logging(repeats: int = REPEATS) -> list[tuple[str, str, str]]:
    """A run that is followed by the sender, which keeps it in W&B's offline files, and the same without W&B, in turns.

    Such a run is as short as any: what it writes of itself costs it more than others. The sender's seconds are those of
    another core, its start shared by all.

    Args:
        repeats: of each.

    Raises:
        RuntimeError: a run was not kept.
    """
    entry = protocol.get(LOGGED)
    without: list[float] = []
    logged: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        sender = Sending(WandBSettings("offline"), [Path(place)], print, None)
        process = psutil.Process(sender.process.pid)
        try:
            for repeat in range(repeats + 1):
                out = Path(place, str(repeat))
                run = run_of(entry, "ewc", repeat)
                began = time.perf_counter()
                execute(run, out / "without", "cpu", "disabled", lambda epochs: None)
                without.append(time.perf_counter() - began)
                folder = run.folder(out / "logged")
                sender.send(folder, live=True)
                began = time.perf_counter()
                execute(run, out / "logged", "cpu", "offline", lambda epochs: None)
                logged.append(time.perf_counter() - began)
                sender.over(folder)
                if not sender.wait(folder):
                    raise RuntimeError("a run was not kept in W&B's files")
            beside = sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))
        finally:
            sender.finish()
    pairs = list(zip(without, logged, strict=True))[1:]  # the first one warms up
    bare, watched = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(second / first for first, second in pairs)
    beside /= repeats + 1
    return [
        ("without W&B", _s(bare), "1"),
        ("logged", _s(watched), f"{ratio:.3f} x"),
        ("the sender beside it, seconds of a core", _s(beside), f"{beside / bare:.2f} x"),
    ]


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s"
