"""A run that is cut short goes on from its checkpoint and ends as if it had not been."""

import io
import json
import random
from dataclasses import replace

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import SupervisedPlugin
from rich.console import Console
from torch import nn

from engrams.benchmarks.jobs import suite
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import run_of
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.judging import generation, real_classifier
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.protocols.schema import Judging
from engrams.benchmarks.runs import Run
from engrams.benchmarks.training import checkpoint
from engrams.benchmarks.training.checkpoint import FILE, INTERVAL, SHARE, Checkpoints, Within
from engrams.reports.errors import UserError
from engrams.reports.wandb.journal import Reader
from engrams.strategies import EWCPlugin
from engrams.strategies.contract import Strategy
from engrams.strategies.generators import acgan

pytestmark = pytest.mark.slow

QUICK = {"generator_epochs": 2, "mem_size": 40, "fisher_samples": 64}


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setenv(SHARE, "inf")


def small(name, strategy, seed=0, gan_steps=10, **training):
    """A run of a second: two epochs of each of three experiences, a few steps of a GAN."""
    entry = registry.get(name, {"training.epochs": 2, **{f"training.{key}": value for key, value in training.items()}})
    if entry.gan:
        entry = entry.model_copy(update={"gan": entry.gan.model_copy(update={"steps": gan_steps, "width": 4})})
    if entry.generation:
        entry = entry.model_copy(update={"generation": entry.generation.model_copy(update={"images_per_class": 50})})
    keys = run_of(entry, strategy).strategy.hyperparameters.model_fields
    run = run_of(entry, strategy, seed, {key: value for key, value in QUICK.items() if key in keys})
    return replace(run, first=3)


def cut_short(run, out, after, wandb_mode="disabled"):
    """Does a run until so many epochs are done."""

    def stop(epochs):
        if epochs == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(run, out, "cpu", wandb_mode, stop)


def counted(run, out, **how):
    epochs = []
    torch.randn(17)  # what the process did before must not matter
    return execute(run, out, "cpu", "disabled", epochs.append, **how), epochs


KEPT = [
    ("split-digits/task", "naive"),
    ("split-digits/class", "naive"),
    ("permuted-digits", "naive"),
    ("split-digits/task", "ewc"),
    ("split-digits/class", "ewc-separate"),
    ("split-digits/class", "mas"),
    ("split-digits/domain", "l2"),
    ("split-digits/class", "replay"),
    ("split-digits/class", "derpp"),
    ("split-digits/class", "icarl"),
    ("split-digits/task", "si"),
    ("split-digits/task", "pnn"),
    ("split-digits/task", "frozen"),
    ("split-digits/task", "avalanche-gem"),
    ("split-digits/class", "dgr"),
    ("split-digits/task", "dgr-vae"),  # for every scholar without a GAN; WITHIN has the others
    ("split-digits/class", "ewc+replay"),
    ("generate-digits", "mergan-ra"),
]


@pytest.fixture
def folders(tmp_path, tmp_path_factory, monkeypatch):
    """Two folders of records with one classifier of real images, which would take longer than all the rest."""
    monkeypatch.setattr(real_classifier, "IMAGES_SEEN", 1000)
    monkeypatch.setattr(generation, "REVERSE_IMAGES_SEEN", 1000)
    kept = tmp_path_factory.getbasetemp() / "classifiers"
    kept.mkdir(exist_ok=True)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "classifiers").symlink_to(kept)
    return tmp_path


def test_a_run_that_failed_for_no_fault_of_its_own_goes_on_and_leaves_no_old_traceback(folders, monkeypatch):
    run, out = small("split-digits/class", "naive"), folders / "cut"
    traceback = run.folder(out) / "traceback.txt"

    def fails(epochs):
        if epochs > run.epochs:
            raise OSError("no space is left")

    record = execute(run, out, "cpu", "disabled", fails)
    assert record.reason.startswith("OSError: no space is left")
    assert traceback.exists()
    monkeypatch.setenv(SHARE, "much")
    with pytest.raises(UserError, match="ENGRAMS_CHECKPOINT_SHARE=much: it must be a number"):
        execute(run, out, "cpu", "disabled", fails)
    monkeypatch.setenv(SHARE, "inf")
    record, epochs = counted(run, out)
    assert record.complete
    assert min(epochs) > run.epochs, "the first experience is not learned again"
    assert not traceback.exists()
    assert not (run.folder(out) / FILE).exists()


@pytest.mark.parametrize(("name", "strategy"), KEPT)
def test_what_goes_on_equals_what_was_never_cut_short(folders, name, strategy):
    tmp_path = folders
    run = small(name, strategy)
    whole, epochs = counted(run, tmp_path / "whole")
    assert whole.complete, whole.reason
    out = tmp_path / "cut"
    per_experience = run.epochs
    cut_short(run, out, after=per_experience + 1)
    assert (run.folder(out) / FILE).exists()
    cut_short(run, out, after=2 * per_experience + 1)  # and once more, from what the second has kept
    again, rest = counted(run, out)
    assert rest == epochs[2 * per_experience :], "it went on from there"
    assert_equal(run, again, whole, tmp_path)


def assert_equal(run, again, whole, tmp_path):
    """Also that the checkpoint is gone, and that the pictures are the same."""
    out = tmp_path / "cut"
    assert (again.costs.operations, again.costs.steps) == (whole.costs.operations, whole.costs.steps)
    for figures in ("accuracy_matrix", "accuracy_at_initialisation", "generated", "metrics"):
        assert getattr(again, figures) == getattr(whole, figures), figures
    assert sorted(path.name for path in run.folder(out).iterdir()) == sorted(
        path.name for path in run.folder(tmp_path / "whole").iterdir()
    )
    for picture in run.folder(out).glob("*.*"):
        if picture.suffix in (".png", ".gif"):
            assert picture.read_bytes() == (run.folder(tmp_path / "whole") / picture.name).read_bytes()


class Moments:
    """Those within experiences at which a checkpoint can be made: a run is cut short at one of them."""

    def __init__(self, monkeypatch):
        self.kinds = []  # (experiences done, whether it is a step of the solver)
        self.cut_at = None
        of_class = Within._offer

        def offer(within, strategy, steps):
            self.kinds.append((strategy.clock.train_exp_counter, steps))
            of_class(within, strategy, steps)
            if len(self.kinds) - 1 == self.cut_at:
                raise KeyboardInterrupt

        monkeypatch.setattr(Within, "_offer", offer)
        monkeypatch.setattr(Checkpoints, "due_within", lambda kept: len(self.kinds) - 1 == self.cut_at)

    def counted(self, run, out):
        """Does a run to its end; returns its record, its epochs and its moments."""
        self.kinds, self.cut_at = [], None
        return *counted(run, out), self.kinds

    def cut(self, run, out, at):
        """Does a run until its so-manieth moment from here on."""
        self.kinds, self.cut_at = [], at
        with pytest.raises(KeyboardInterrupt):
            execute(run, out, "cpu", "disabled", lambda n: None)
        assert (run.folder(out) / FILE).exists()


WITHIN = [
    ("split-digits/task", "naive"),
    ("split-digits/class", "ewc"),
    ("split-digits/class", "mas"),
    ("split-digits/domain", "l2"),
    ("split-digits/class", "replay"),
    ("split-digits/task", "frozen"),
    ("split-digits/task", "avalanche-gem"),
    ("split-digits/class", "dgr"),
    ("split-digits/task", "dgr-vae"),
    ("split-digits/class", "exact-replay"),
    ("split-digits/task", "dgr-gaussian"),
    ("split-digits/class", "derpp"),
    ("split-digits/class", "icarl"),
    ("split-digits/task", "si"),
    ("split-digits/task", "pnn"),
    ("split-digits/class", "mergan-jtr"),
    ("split-digits/class", "mergan-ra"),
    ("generate-digits", "gan-ewc"),
]


@pytest.mark.parametrize(("name", "strategy"), WITHIN)
def test_what_goes_on_from_the_middle_of_an_experience_equals_what_was_never_cut_short(
    folders, monkeypatch, name, strategy
):
    moments = Moments(monkeypatch)
    monkeypatch.setattr(acgan, "ROUND", 7)
    run = small(name, strategy)
    whole, epochs, possible = moments.counted(run, folders / "whole")
    assert whole.complete, whole.reason
    random.seed(f"{name} {strategy}")
    kinds = {steps for _, steps in possible}
    assert False in kinds or not run.budget.generator_epochs
    chosen = {random.choice([n for n, (done, steps) in enumerate(possible) if steps == kind]) for kind in kinds}
    # The last two are in one epoch, and not in the first: what went on in the middle of it is cut short in it again.
    chosen |= {
        random.choice([n for n, (done, _) in enumerate(possible) if done == 2]),
        len(possible) - 2,
        len(possible) - 1,
    }
    gone = -1
    for moment in sorted(chosen):
        moments.cut(run, folders / "cut", at=moment - gone - 1)
        gone = moment
    again, rest, left = moments.counted(run, folders / "cut")
    assert left == possible[gone + 1 :], "it went on from there, and not from where the experience began"
    assert rest == epochs[len(epochs) - len(rest) :]
    assert_equal(run, again, whole, folders)


@pytest.mark.parametrize(
    "settings",
    [
        *({"reset_optimizer": True}, {"schedule": "linear"}, {"schedule": "steps"}),
        {"optimizer": "sgd", "momentum": 0.9},
    ],
)
def test_the_optimiser_and_its_schedule_go_on(tmp_path, monkeypatch, settings):
    run = small("split-digits/class", "naive", **settings)
    whole, _ = counted(run, tmp_path / "whole")
    cut_short(run, tmp_path / "cut", after=5)
    moments = Moments(monkeypatch)
    moments.cut(run, tmp_path / "cut", at=6)
    moments.cut(run, tmp_path / "cut", at=5)
    assert counted(run, tmp_path / "cut")[0].accuracy_matrix == whole.accuracy_matrix


@pytest.mark.parametrize(
    "settings",
    [
        {"training.iterations_per_batch": 3, "training.epochs": 2},
        {
            **{"training.iterations_per_batch": 3, "training.epochs": 1},
            **{"stream.boundaries": "gradual", "stream.width": 0.5},
        },
    ],
)
def test_minibatches_in_order_and_several_times_in_a_row_go_on(folders, monkeypatch, settings):
    moments = Moments(monkeypatch)
    entry = registry.get("split-digits/class", settings)
    run = replace(run_of(entry, "naive"), first=2)
    whole, _, possible = moments.counted(run, folders / "whole")
    assert whole.complete, whole.reason
    gone = -1
    for moment in (len(possible) // 2, len(possible) - 3, len(possible) - 2):
        moments.cut(run, folders / "cut", at=moment - gone - 1)
        gone = moment
    again, _, left = moments.counted(run, folders / "cut")
    assert left == possible[gone + 1 :]
    assert_equal(run, again, whole, folders)


def test_what_is_measured_and_changed_along_the_way_goes_on(tmp_path, monkeypatch):
    run = small("split-digits/class", "replay", horizontal_flips=True, random_crops=1, augmented="both")
    judging = Judging(every=3, samples=20, prequential=True, window=50)
    run = replace(run, protocol=run.protocol.model_copy(update={"judging": judging}))
    whole, _ = counted(run, tmp_path / "whole")
    assert whole.complete, whole.reason
    moments = Moments(monkeypatch)
    moments.cut(run, tmp_path / "cut", at=2)
    cut_short(run, tmp_path / "cut", after=5)
    moments.cut(run, tmp_path / "cut", at=4)
    again, _ = counted(run, tmp_path / "cut")
    for figures in ("accuracy_matrix", "anytime", "prequential"):
        assert getattr(again, figures) == getattr(whole, figures) is not None


@pytest.mark.parametrize("strategy", ["avalanche-ewc", "cumulative"])
def test_what_does_not_say_what_it_keeps_begins_again(tmp_path, strategy):
    run = small("split-digits/task", strategy)
    whole, epochs = counted(run, tmp_path / "whole")
    cut_short(run, tmp_path / "cut", after=5)
    assert not (run.folder(tmp_path / "cut") / FILE).exists()
    again, all_of_them = counted(run, tmp_path / "cut")
    assert all_of_them == epochs
    assert again.accuracy_matrix == whole.accuracy_matrix


class Remembering(SupervisedPlugin):
    """Somebody's own: scales the loss by how many experiences it has met."""

    met = 0

    def before_backward(self, strategy, **kwargs):
        strategy.loss = strategy.loss / (1 + 10 * self.met)

    def after_training_exp(self, strategy, **kwargs):
        self.met += 1


class Saying(Remembering):
    def state_dict(self):
        return {"met": self.met}

    def load_state_dict(self, state):
        self.met = state["met"]


class SilentBelow(Saying):
    """What it inherits says nothing of what it has besides."""

    more = 0

    def after_training_exp(self, strategy, **kwargs):
        super().after_training_exp(strategy, **kwargs)
        self.more += 1

    def before_backward(self, strategy, **kwargs):
        strategy.loss = strategy.loss * (1 + self.more)


class BelowOurs(EWCPlugin):
    def __init__(self):
        super().__init__(1.0)
        self.met = 0

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        self.met += 1

    def before_backward(self, strategy, **kwargs):
        super().before_backward(strategy, **kwargs)
        strategy.loss = strategy.loss * (1 + self.met)


class AModule(Remembering, nn.Module):
    """Torch answers for it, of parameters alone."""

    def __init__(self):
        nn.Module.__init__(self)
        Remembering.__init__(self)


class CountingLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, outputs, y):
        self.asked += outputs.requires_grad
        return nn.functional.cross_entropy(outputs, y) / (1 + self.asked)


class CountingCallable:
    asked = 0

    def __call__(self, outputs, y):
        self.asked += outputs.requires_grad
        return nn.functional.cross_entropy(outputs, y) / (1 + self.asked)


class PlainLoss(nn.Module):
    def forward(self, outputs, y):
        return nn.functional.cross_entropy(outputs, y)


class CountingNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(64, 10)
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        return self.classifier(x.flatten(1)) * (1 + 0.01 * self.steps)


@pytest.mark.parametrize(
    ("changed", "goes_on"),
    [
        (lambda: {"criterion": CountingLoss()}, False),
        (lambda: {"criterion": CountingCallable()}, False),
        (lambda: {"criterion": PlainLoss()}, True),
        (lambda: {"model": CountingNetwork()}, False),
    ],
    ids=["loss", "callable", "plain loss", "network"],
)
def test_a_loss_or_a_network_that_counts_begins_again(tmp_path, changed, goes_on):
    def build(h, template):
        new = changed()
        if "model" in new:
            new["optimizer"] = torch.optim.SGD(new["model"].parameters(), lr=0.1)
        return Naive(**template | new)

    own = Strategy(build=build, name="own", reference="own")
    run = Run(small("split-digits/domain", "naive").protocol, own, 0, own.hyperparameters())
    whole, epochs = counted(run, tmp_path / "whole")
    cut_short(run, tmp_path / "cut", after=5)
    again, rest = counted(run, tmp_path / "cut")
    assert again.accuracy_matrix == whole.accuracy_matrix
    assert (len(rest) < len(epochs)) == goes_on


@pytest.mark.parametrize(
    ("plugin", "goes_on"),
    [(Remembering, False), (Saying, True), (SilentBelow, False), (BelowOurs, False), (AModule, False)],
)
def test_a_plugin_of_ones_own_goes_on_if_it_says_what_it_keeps(tmp_path, plugin, goes_on):
    run = small("split-digits/task", "naive")
    own = Strategy(plugin=lambda h: plugin(), name="own", reference="own")
    run = type(run)(run.protocol, own, 0, own.hyperparameters())
    whole, epochs = counted(run, tmp_path / "whole")
    cut_short(run, tmp_path / "cut", after=5)
    again, rest = counted(run, tmp_path / "cut")
    assert again.accuracy_matrix == whole.accuracy_matrix
    assert len(rest) == (len(epochs) - 4 if goes_on else len(epochs))


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def damage_foreign(path):
    path.write_bytes(b"nothing of ours")


def of_another_seed(path):
    run = small("split-digits/task", "naive", seed=1)
    cut_short(run, path.parents[3], after=5)
    path.write_bytes((run.folder(path.parents[3]) / FILE).read_bytes())


def of_another_version(path):
    body = path.read_bytes().partition(b"\n")[2]
    content = torch.load(io.BytesIO(body), weights_only=True)
    identity = json.loads(content["identity"])
    identity[6]["torch"] = "2.0.0"
    kept = Checkpoints(path.parent, json.dumps(identity, sort_keys=True))
    kept.offer(lambda: content["state"])


def of_another_judging(path):
    run = small("split-digits/task", "naive")
    run = replace(run, protocol=run.protocol.model_copy(update={"judging": Judging(every=3)}))
    path.unlink()
    cut_short(run, path.parents[4], after=5)


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_a_bit, damage_foreign, of_another_seed, of_another_version, of_another_judging],
)
def test_a_checkpoint_that_is_of_no_use_is_set_aside_with_one_line(tmp_path, capfd, damage):
    run = small("split-digits/task", "naive")
    out = tmp_path / "split-digits"
    cut_short(run, tmp_path, after=5)
    path = run.folder(tmp_path) / FILE
    assert path.is_relative_to(out)
    damage(path)
    content = path.read_bytes()
    capfd.readouterr()
    again, epochs = counted(run, tmp_path)
    assert epochs[0] == 1, "it began again"
    assert again.complete
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(f"{path} is not used, and kept as checkpoint.aside-1: it is ")
    assert (path.parent / "checkpoint.aside-1").read_bytes() == content


def test_no_code_is_run_that_a_checkpoint_brings(tmp_path):
    """A pickle that would write a file is no checkpoint, even with a checksum that fits."""

    class Evil:
        def __reduce__(self):
            return print, ("run!",)

    kept = Checkpoints(tmp_path, "it")
    kept._write({"evil": Evil()})
    assert kept.read() is None
    assert (tmp_path / "checkpoint.aside-1").exists()


def test_an_interrupt_says_what_goes_on(tmp_path):
    cut_short(small("split-digits/task", "naive"), tmp_path, after=5)
    under_way = [small("split-digits/task", "naive"), small("split-digits/task", "avalanche-ewc")]
    screen = io.StringIO()
    suite._say_what_goes_on(under_way, tmp_path, Display(Console(file=screen, width=200)))
    assert screen.getvalue() == "under way: 1 to go on from a checkpoint, 1 to begin again\n"


def test_the_journal_goes_on_and_has_nothing_twice(tmp_path):
    run = small("split-digits/task", "naive")
    for out in ("whole", "cut"):
        if out == "cut":
            cut_short(run, tmp_path / out, 5, "offline")
        execute(run, tmp_path / out, "cpu", "offline", lambda n: None)
    rows = {
        out: [line.get("row") for line in Reader(run.folder(tmp_path / out)).lines() if "seconds" not in line]
        for out in ("whole", "cut")
    }
    for lines in rows.values():
        for row in lines:
            if row:
                row.pop("seconds", None)
    assert rows["cut"] == rows["whole"]
    assert len([row for row in rows["cut"] if row and "epoch" in row]) == run.upper_limit_of_epochs


def test_checkpoints_take_no_more_than_their_share(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    monkeypatch.setenv(SHARE, "0.01")
    kept = Checkpoints(tmp_path, "it")
    written = []

    def take_a_second(state):
        written.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(kept, "_write", take_a_second)
    for _ in range(1000):
        now[0] += 1.0
        kept.offer(dict)
    assert len(written) >= 5
    assert len(written) * 1.0 <= 0.02 * now[0]


def test_a_disk_that_is_full_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch, capfd):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.files, "replace_file", full)
    kept = Checkpoints(tmp_path, "it")
    kept.offer(dict)
    assert "checkpoint cannot be written: [Errno 28] No space left" in capfd.readouterr().err
    assert kept.read() is None


@pytest.mark.parametrize("strategy", ["avalanche-ewc-online", "avalanche-gdumb", "avalanche-er-ace"])
def test_what_cannot_be_kept_is_not_disturbed_however_long_it_takes(tmp_path, monkeypatch, strategy):
    """Not where a checkpoint within an experience has been due for as long as it is learned."""
    whole = execute(small("split-digits/task", strategy), tmp_path / "whole", "cpu", "disabled", lambda epochs: None)
    monkeypatch.setenv(INTERVAL, "0")
    monkeypatch.setenv(SHARE, "inf")
    record = execute(small("split-digits/task", strategy), tmp_path / "asked", "cpu", "disabled", lambda epochs: None)
    assert record.complete, record.reason
    assert record.accuracy_matrix == whole.accuracy_matrix
