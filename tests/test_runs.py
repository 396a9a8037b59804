"""Runs and records, through the command line as a user has it."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate

from engrams.benchmarks.cli.app import main
from engrams.benchmarks.data import streams
from engrams.benchmarks.data.images import ImageData, PreparedLater
from engrams.benchmarks.data.streams import make_benchmark, prepared
from engrams.benchmarks.jobs import execute as execution
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import plan, run_of
from engrams.benchmarks.jobs.suite import SuiteError, finished
from engrams.benchmarks.protocols import registry as protocol
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.protocols.schema import ReducedResNet18
from engrams.benchmarks.runs import Run
from engrams.benchmarks.training.build import make_strategy
from engrams.benchmarks.training.checkpoint import INTERVAL, SHARE
from engrams.benchmarks.training.learn import learn
from engrams.reports import store
from engrams.reports.matrix import METRICS, metrics
from engrams.strategies import catalogue
from engrams.strategies.catalogue import CATALOGUE

ROOT = Path(__file__).parent.parent


def engrams(*arguments):
    """Run the command line in this process, which has imported torch already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["engrams", *map(str, arguments)]):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Three strategies, two seeds, once for all tests that only read it."""
    out = tmp_path_factory.mktemp("runs")
    done = engrams(
        "run", "split-digits/task", "naive", "ewc", "joint", "naive", "--seeds", 2, "--out", out, "--wandb", "disabled"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done


def in_process(tmp_path, strategy, seed=0, name="split-digits/task", first=None, **overrides):
    entry = protocol.get(name)
    run = replace(run_of(entry, strategy, seed, overrides), first=first)
    return execute(run, tmp_path, "cpu", "disabled", lambda epochs: None)


def test_records_hold_what_is_promised(small_run):
    out, _ = small_run
    path = out / "split-digits" / "task" / "ewc" / "1" / "record.json"
    raw = json.loads(path.read_text())
    for key in ("protocol", "strategy", "seed", "status", "accuracy_matrix", "metrics", "hyperparameters", "seconds"):
        assert key in raw
    assert (raw["protocol"], raw["strategy"], raw["seed"]) == ("split-digits/task", "ewc", 1)
    assert raw["status"] == "complete"
    assert [len(row) for row in raw["accuracy_matrix"]] == [5] * 5
    assert set(raw["metrics"]) == set(METRICS)
    assert raw["metrics"] == metrics(raw["accuracy_matrix"], raw["accuracy_at_initialisation"])
    assert raw["hyperparameters"]["training"]["epochs"] == 10
    assert raw["hyperparameters"]["strategy"]["fisher"] == "exact"
    assert raw["environment"]["versions"]["torch"]


NOT_THE_PROTOCOLS = {
    "chaudhry2019-ewc": {"ewc_lambda": 10.0, "every": 5},
    "chaudhry2019-mas": {"mas_lambda": 0.1},
    "avalanche-rwalk": {"ewc_lambda": 1.0},
}


@pytest.mark.parametrize("name", ["split-digits/task", "split-digits/class"])
@pytest.mark.parametrize("strategy", CATALOGUE)
def test_every_strategy_runs(tmp_path, monkeypatch, name, strategy):
    """With several heads and with one that grows; an epoch of two experiences: what it learns is another test's.

    As in a run that takes hours, a checkpoint is due after every step, whether or not it can be kept.
    """
    monkeypatch.setenv(INTERVAL, "0")
    monkeypatch.setenv(SHARE, "inf")
    entry = protocol.get(name)
    training, gan = entry.training.model_copy(update={"epochs": 1}), entry.gan.model_copy(update={"steps": 5})
    entry = entry.model_copy(update={"training": training, "gan": gan})
    found = catalogue.get(strategy)
    if not found.has_solver:
        pytest.skip("generates only; test_generation.py has it")
    if found.needs_new_classes and entry.scenario != "class":
        pytest.skip("refused; test_generation.py has it")
    if found.needs_task_labels and entry.scenario != "task":
        pytest.skip("refused; test_pnn.py has it")
    brief = dict.fromkeys(("generator_epochs", "vae_epochs"), 2) | {"epochs": 1}
    brief = {key: value for key, value in brief.items() if key in found.hyperparameters.model_fields}
    brief |= NOT_THE_PROTOCOLS.get(strategy, {})
    run = replace(run_of(entry, strategy, 0, brief), first=2)
    epochs = []
    record = execute(run, tmp_path, "cpu", "disabled", epochs.append)
    if strategy.startswith("avalanche-generative-replay") and name.endswith("task"):
        assert "cannot do several heads" in record.reason
        assert "Error" not in record.reason
        return
    if strategy in ("avalanche-der", "avalanche-derpp"):
        assert "one classifier that does not grow" in record.reason
        return
    if strategy in ("avalanche-slda", "avalanche-ncm") and name.endswith("task"):
        assert "no task-incremental stream" in record.reason
        return
    assert record.complete, record.reason
    assert record.metrics["ACC"] > 0.05
    assert epochs == list(range(1, run.upper_limit_of_epochs + 1))


def test_avalanches_der_runs_where_the_head_does_not_grow(tmp_path):
    entry = protocol.get("split-digits/class", {"training.epochs": 1, "network.all_classes": True})
    record = execute(
        replace(run_of(entry, "avalanche-derpp"), first=2), tmp_path, "cpu", "disabled", lambda epochs: None
    )
    assert record.complete, record.reason
    assert record.hyperparameters["network"]["all_classes"] is True


def test_avalanches_agem_samples_each_earlier_experience(tmp_path):
    run = plan("split-digits/class", ["avalanche-agem"], [0], {"sample_size": 2, "training.epochs": 1}, first=3)[0]
    run.check()
    assert execute(run, tmp_path, "cpu", "disabled", lambda epochs: None).complete
    joined = plan(
        "split-digits/class", ["avalanche-agem+ewc"], [0], {"avalanche-agem.sample_size": 3, "ewc.ewc_lambda": 1.0}
    )
    with pytest.raises(ProtocolError, match=r"^split-digits/class: avalanche-agem\+ewc: sample_size 3 is below 4, the"):
        joined[0].check()


def test_learning_is_real(small_run):
    out, _ = small_run
    records = {(record.strategy, record.seed): record for record in store.read_all(out)}
    for record in records.values():
        assert record.metrics["ACC"] > 0.6
        if record.strategy != "joint":
            assert record.metrics["learning_accuracy"] > 0.95
    assert len(records["joint", 0].accuracy_matrix) == 1
    assert records["joint", 0].metrics["BWT"] is None
    assert records["ewc", 0].metrics["forgetting"] < records["naive", 0].metrics["forgetting"]


def test_the_end_shows_the_table_and_the_paths(small_run):
    out, done = small_run
    assert "[6/6] " in done.stdout
    assert "split-digits/task" in done.stdout
    assert "joint ‡" in done.stdout
    assert f"records: {out}" in done.stdout
    assert "\x1b" not in done.stdout, "plain lines where the output is no terminal"


def test_a_complete_run_is_not_run_again(small_run):
    out, _ = small_run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}
    done = engrams("run", "split-digits/task", "naive", "ewc", "--seeds", 2, "--out", out, "--wandb", "disabled")
    assert done.returncode == 0
    assert "4 of 4 runs have a complete record already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("record.json")} == before


def test_same_seed_same_matrix_to_the_bit(tmp_path, small_run):
    out, _ = small_run
    torch.set_num_threads(1)
    torch.randn(17)  # what the process did before must not matter
    first_of = {
        strategy: store.read(out / "split-digits" / "task" / strategy / "0" / "record.json").accuracy_matrix
        for strategy in ("ewc", "joint")
    }
    assert in_process(tmp_path, "joint").accuracy_matrix == first_of["joint"]
    of_three = [row[:3] for row in first_of["ewc"][:3]]
    assert in_process(tmp_path, "ewc", first=3).accuracy_matrix == of_three
    assert in_process(tmp_path, "ewc", seed=1, first=3).accuracy_matrix != of_three


def test_naive_is_avalanches_naive_to_the_bit(tmp_path):
    ours, theirs = (in_process(tmp_path, strategy, first=3) for strategy in ("naive", "avalanche-naive"))
    assert ours.accuracy_matrix == theirs.accuracy_matrix


@pytest.mark.parametrize("strategy", ["ewc", "avalanche-gdumb"])
def test_what_a_head_that_was_not_trained_answers_is_not_asked_again(monkeypatch, strategy):
    """Nor does it change what comes out; GDumb's heads do change, and are asked."""
    entry = protocol.get("split-digits/task")
    entry = entry.model_copy(update={"training": entry.training.model_copy(update={"epochs": 1})})
    asked = []
    evaluate = SupervisedTemplate.eval

    def counting(self, stream, **kwargs):
        asked.append(len(stream))
        return evaluate(self, stream, **kwargs)

    monkeypatch.setattr(SupervisedTemplate, "eval", counting)
    run = run_of(entry, strategy, 0, {"epochs": 2} if strategy == "avalanche-gdumb" else {})
    shorter = learn(run, "cpu", [], _quiet)
    assert strategy != "ewc" or asked == [5, 5, 2, 3, 4, 5]
    monkeypatch.setattr("engrams.benchmarks.training.learn.may_have_changed", lambda model, experience: True)
    asked.clear()
    whole = learn(run, "cpu", [], _quiet)
    assert asked == [5] * 6
    assert shorter[:2] == whole[:2]


def random_cifar100():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(100).repeat(5)
    pixels = torch.randint(256, (500, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ImageData(pixels, y, pixels[:100], y[:100])


def test_one_pass_takes_one_step_a_minibatch_and_sees_every_sample_once(monkeypatch):
    """The protocol of Chaudhry et al. 2019, on images of random pixels."""
    entry = protocol.get("agem2019-split-cifar100")
    assert (entry.training.epochs, entry.training.batch_size) == (1, 10)
    entry = entry.model_copy(update={"network": ReducedResNet18(kind="resnet18-reduced", width=1)})
    data = random_cifar100()
    monkeypatch.setattr(streams, "load", lambda *_: data)
    streams.prepared.cache_clear()
    seen: list[torch.Tensor] = []

    class Counting(SupervisedPlugin):
        steps = 0

        def after_update(self, strategy, **kwargs):
            Counting.steps += 1
            seen.append(strategy.mb_x)

    naive = catalogue.get("naive")
    counted = replace(
        naive, build=lambda h, template: naive.build(h, template | {"plugins": [*template["plugins"], Counting()]})
    )
    learned = learn(Run(entry, counted, 0, naive.hyperparameters()), "cpu", [], _quiet)
    assert np.array(learned.accuracy_matrix).shape == (17, 17)
    assert Counting.steps == 17 * math.ceil(25 / 10)
    learned_from = {tuple(x.flatten().tolist()) for x in torch.cat(seen)}
    mean = torch.tensor([0.5071, 0.4865, 0.4409])[:, None, None]
    assert learned_from == {tuple((x / 255 - mean).flatten().tolist()) for x in data.train_x[data.train_y >= 15]}
    streams.prepared.cache_clear()


@pytest.mark.parametrize("strategy", ["ewc", "replay", "joint", "avalanche-agem", "avalanche-replay"])
def test_images_prepared_by_the_minibatch_give_the_same_result_to_the_bit(monkeypatch, strategy):
    entry = protocol.get("agem2019-split-cifar100")
    entry = entry.model_copy(update={"network": ReducedResNet18(kind="resnet18-reduced", width=1)})
    data = random_cifar100()
    monkeypatch.setattr(streams, "load", lambda *_: data)
    found = catalogue.get(strategy)
    run = Run(entry, found, 0, entry.hyperparameters_of(found), first=3)
    results = []
    for large in (1, streams.LARGE):
        monkeypatch.setattr(streams, "LARGE", large)
        streams.prepared.cache_clear()
        results.append(learn(run, "cpu", [], _quiet)[:2])
        kept = streams.prepared(entry.dataset, entry.images, False, by_minibatch=True).train_x
        assert isinstance(kept, PreparedLater) == (large == 1)
    streams.prepared.cache_clear()
    assert results[0] == results[1]


def test_avalanches_evaluator_is_asked_in_evaluation_only(monkeypatch):
    """A run measures and logs nothing while it trains; asked all the same, eight times a step, it takes long."""
    asked = set()
    update = EvaluationPlugin._update_metrics_and_loggers

    def listening(self, strategy, callback):
        asked.add(callback)
        return update(self, strategy, callback)

    run = replace(run_of(protocol.get("split-digits/task"), "replay"), first=2)
    monkeypatch.setattr(EvaluationPlugin, "_update_metrics_and_loggers", listening)
    quiet = learn(run, "cpu", [], _quiet)
    assert "after_eval" in asked
    assert not {name for name in asked if "training" in name}
    monkeypatch.setattr("engrams.benchmarks.training.build.SilentInTraining", EvaluationPlugin)
    assert learn(run, "cpu", [], _quiet).accuracy_matrix == quiet.accuracy_matrix
    assert "after_training_iteration" in asked


@pytest.mark.parametrize("name", ["split-digits/class", "split-digits/domain"])
@pytest.mark.parametrize("strategy", ["frozen", "ewc-separate", "avalanche-ewc", "avalanche-ewc-online", "l2"])
def test_every_scenario_runs(tmp_path, name, strategy):
    record = in_process(tmp_path, strategy, name=name, first=3)
    assert record.complete, record.reason
    assert record.metrics["learning_accuracy"] > 0.3


def test_class_incremental_masks_what_has_not_been_met(tmp_path):
    record = in_process(tmp_path, "cumulative", name="split-digits/class")
    matrix = record.accuracy_matrix
    assert all(matrix[i][j] == 0 for i in range(5) for j in range(5) if j > i)
    assert record.metrics["ACC"] > 0.85


def test_a_loss_that_is_no_number_is_recorded_with_its_reason_and_the_others_go_on(tmp_path):
    chosen = tmp_path / "runs"
    done = engrams(
        *("run", "split-digits/task", "ewc", "naive", "--seeds", 1, "--set", "ewc_lambda=1e39"),
        *("--out", chosen, "--wandb", "disabled"),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    failed = store.read(chosen / "split-digits" / "task" / "ewc" / "ewc_lambda=1e+39" / "0" / "record.json")
    assert failed.status == "failed"
    assert "the training loss became" in failed.reason
    assert "lower the learning rate" in failed.reason
    assert store.read(chosen / "split-digits" / "task" / "naive" / "0" / "record.json").complete
    assert "FAILED: the training loss became" in done.stdout
    assert "1 failed" in done.stdout


def test_a_generator_of_avalanches_that_diverges_is_named(tmp_path):
    entry = protocol.get("split-digits/class")
    settings = {"generator_learning_rate": 1e30}
    strategy = "avalanche-generative-replay"
    run = run_of(entry, strategy, 0, settings)
    record = execute(run, tmp_path, "cpu", "disabled", _quiet)
    assert record.status == "failed"
    assert "the generator's training loss became" in record.reason
    assert record.reason.endswith("in experience 0; lower its learning rate")


def test_other_settings_are_refused_and_nothing_is_lost(tmp_path):
    in_process(tmp_path, "ewc", ewc_lambda=12345.0)
    path = tmp_path / "split-digits" / "task" / "ewc" / "0" / "record.json"
    before = path.read_bytes()
    done = engrams("run", "split-digits/task", "ewc", "--seeds", 1, "--out", tmp_path, "--wandb", "disabled")
    assert done.returncode == 2
    assert "was made with other settings (strategy.ewc_lambda was 12345.0, is now" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert path.read_bytes() == before


def test_another_way_of_judging_along_the_way_is_refused(tmp_path):
    """Else one row would be of curves that were measured in different ways."""
    small = {"training.epochs": 1}

    def given(**judging):
        (run,) = plan("split-digits/class", ["naive"], [0], small | {f"judging.{k}": v for k, v in judging.items()})
        return replace(run, variant="one")

    assert execute(given(every=5, prequential=True, window=100), tmp_path, "cpu", "disabled", _quiet).complete
    assert finished(given(every=5, prequential=True, window=100), tmp_path)
    assert finished(given(), tmp_path), "what is not asked for may be there"
    for judging, message in (
        ({"every": 7}, "judging.every was 5, is now 7"),
        ({"every": 5, "samples": 3}, "judging.samples was None, is now 3"),
        ({"every": 5, "prequential": True, "window": 10}, "judging.window was 100, is now 10"),
    ):
        with pytest.raises(SuiteError, match=message):
            finished(given(**judging), tmp_path)
    again = replace(given(), seed=1)
    assert execute(again, tmp_path, "cpu", "disabled", _quiet).complete
    with pytest.raises(SuiteError, match=r"judging\.every was None, is now 5"):
        finished(replace(given(every=5), seed=1), tmp_path)
    with pytest.raises(SuiteError, match=r"judging\.window was None, is now 1000"):
        finished(replace(given(prequential=True), seed=1), tmp_path)
    (joint,) = plan("split-digits/class", ["joint"], [1], small)
    assert execute(joint, tmp_path, "cpu", "disabled", _quiet).complete
    (asked,) = plan("split-digits/class", ["joint"], [1], small | {"judging.prequential": True})
    assert finished(replace(asked, variant=joint.variant), tmp_path), "there can be none"
    for strategy in ("joint", "cumulative"):  # of these there is no curve, or no prequential accuracy
        (run,) = plan("split-digits/class", [strategy], [0], small | {"judging.every": 5, "judging.prequential": True})
        assert execute(run, tmp_path, "cpu", "disabled", _quiet).complete
        assert finished(run, tmp_path)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = engrams("run", "split-digits/task", "naive", "--out", tmp_path / "file", "--wandb", "disabled")
    assert done.returncode == 2
    assert "the records cannot be written to" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    record = in_process(tmp_path, "naive")
    folder = tmp_path / "elsewhere"
    path = store.write(record, folder)
    before = path.read_bytes()

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(record.model_copy(update={"seconds": 0.0}), folder)
    assert path.read_bytes() == before


def test_the_server_of_processes_leaves_an_interrupt_to_the_command_line(tmp_path):
    log = tmp_path / "log"
    words = [sys.executable, "-m", "benchmarks", "run", "split-digits/task", "naive", "--out", str(tmp_path / "runs")]
    with log.open("w") as file:  # a terminal interrupts a whole group: the server of processes too
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    command, deadline = psutil.Process(process.pid), time.monotonic() + 60
    server: list[psutil.Process] = []
    while not server:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        with suppress(psutil.NoSuchProcess):  # it has begun another one meanwhile, which is over
            server = [one for one in command.children() if "forkserver" in " ".join(one.cmdline())]
    time.sleep(0.5)  # both read torch now, or Avalanche
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120)
    time.sleep(1)
    for one in server:  # it would read on for seconds, for nobody
        one.kill()
    assert "forkserver" not in log.read_text()


def test_the_device_is_asked_for_where_the_run_is_done(tmp_path, monkeypatch):
    """The command's own machine may have no GPU, and the workers' one."""

    def asked():
        raise AssertionError("in the command's own process")

    monkeypatch.setattr(execution, "usual_device", asked)
    words = ("--seeds", 1, "--experiences", 1, "--set", "training.epochs=1", "--wandb", "disabled", "--out", tmp_path)
    done = engrams("run", "split-digits/task", "naive", *words)
    assert done.returncode == 0, done.stderr
    (record,) = store.read_all(tmp_path)
    assert record.complete


def test_stopped_in_the_middle_goes_on_from_there(tmp_path):
    arguments = ["run", "split-digits/task", "naive", "--seeds", "3", "--out", str(tmp_path), "--wandb", "disabled"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments, "--workers", "1"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    waiting = time.monotonic() + 120
    while not list(tmp_path.rglob("record.json")) and time.monotonic() < waiting:
        time.sleep(0.05)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "interrupted: what is finished is kept" in output
    kept = len(store.read_all(tmp_path))
    assert 0 < kept < 3
    done = engrams(*arguments)
    assert f"{kept} of 3 runs have a complete record already" in done.stdout
    assert len(store.read_all(tmp_path)) == 3


def _quiet(epochs):
    pass


TINY_IMAGENET = """
title = "A small network on Tiny ImageNet"
dataset = "tiny-imagenet"
[images]
mean = [0.5, 0.4, 0.3]
std = [0.2, 0.25, 0.3]
[stream]
kind = "split"
scenarios = ["task"]
classes_per_experience = 50
class_order = "seeded"
validation_fraction = 0.5
[network]
kind = "cnn"
convolutions = [4, "M", "M", "M", 8, "M"]
hidden_sizes = [64]
[training]
optimizer = "adam"
learning_rate = 1e-2
batch_size = 20
epochs = 15
schedule = "linear"
reset_optimizer = true
horizontal_flips = true
[sources]
"images" = "ours"
"stream" = "ours"
"network" = "ours"
"training" = "ours"
"""


@pytest.fixture
def tiny_protocol(tmp_path):
    """In a folder of its own, which it returns."""
    folder = tmp_path / "protocols"
    folder.mkdir()
    (folder / "tiny.toml").write_text(TINY_IMAGENET)
    return folder


def test_images_on_disk_and_in_memory_give_the_same_result_to_the_bit(
    tmp_path, tiny_protocol, fresh_data, tiny_imagenet
):
    fresh_data.setenv("ENGRAMS_DATA", str(tiny_imagenet))
    [entry] = protocol.read(tiny_protocol / "tiny.toml")
    run = replace(run_of(entry, "naive", 0), first=2)
    kept, streamed = (execute(run, tmp_path, "cpu", "disabled", _quiet, from_disk) for from_disk in (False, True))
    assert kept.complete, kept.reason
    assert (kept.environment["images"], streamed.environment["images"]) == ("in memory", "on disk")
    assert streamed.accuracy_matrix == kept.accuracy_matrix
    assert streamed.hyperparameters == kept.hyperparameters, "where the images lie decides nothing"
    assert kept.metrics["learning_accuracy"] > 0.3, "chance is 0.02"


def test_the_command_line_hands_on_where_images_are_read_from(tmp_path, small_run):
    out = ("--seeds", 1, "--out", tmp_path, "--wandb", "disabled")
    assert engrams("run", "split-digits/task", "naive", *out, "--stream-from-disk").returncode == 0
    [streamed] = store.read_all(tmp_path)
    kept = store.read(small_run[0] / "split-digits" / "task" / "naive" / "0" / "record.json")
    assert (streamed.environment["images"], kept.environment["images"]) == ("on disk", "in memory")
    assert streamed.accuracy_matrix == kept.accuracy_matrix


def test_the_optimizer_is_the_protocols():
    entry = protocol.get("split-digits/task")
    training = entry.training.model_copy(update={"optimizer": "sgd", "momentum": 0.9})
    run = run_of(entry.model_copy(update={"training": training}), "naive", 0)
    benchmark = make_benchmark(prepared("digits", entry.images), entry.stream, "task", "test", 0)
    optimizer = make_strategy(run, benchmark, "cpu", []).optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (1e-3, 0.9)


@pytest.mark.parametrize(
    ("the_protocols", "own", "falls"),
    [
        ("constant", None, False),
        ("constant", "linear", True),
        ("linear", None, True),
        ("linear", "constant", False),
    ],
)
def test_a_scholars_own_schedule_goes_before_the_protocols(the_protocols, own, falls):
    entry = protocol.get("split-digits/class")
    entry = entry.model_copy(update={"training": entry.training.model_copy(update={"schedule": the_protocols})})
    settings = {"solver_schedule": own, "generator_epochs": 1}
    run = run_of(entry, "dgr-vae", 0, settings)
    benchmark = make_benchmark(prepared("digits", entry.images), entry.stream, "class", "test", 0)

    class Rates(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            self.rates = []

        def before_update(self, strategy, **kwargs):
            self.rates.append(strategy.optimizer.param_groups[0]["lr"])

    plugin = Rates()
    strategy = make_strategy(run, benchmark, "cpu", [plugin])
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
        first, last = plugin.rates[0], plugin.rates[-1]
        assert first == entry.training.learning_rate
        assert last == pytest.approx(first / len(plugin.rates) if falls else first)


def test_a_rate_in_steps_is_a_tenth_from_the_middle_and_a_hundredth_from_three_quarters():
    entry = protocol.get("split-digits/class", {"training.schedule": "steps", "training.epochs": 4})
    benchmark = make_benchmark(prepared("digits", entry.images), entry.stream, "class", "test", 0)
    rates: list[float] = []

    class Rates(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            rates.append(strategy.optimizer.param_groups[0]["lr"])

    strategy = make_strategy(run_of(entry, "naive"), benchmark, "cpu", [Rates()])
    for experience in benchmark.train_stream[:2]:
        rates.clear()
        strategy.train(experience)
        epoch, rate = len(rates) // 4, entry.training.learning_rate
        assert rates == pytest.approx([rate] * 2 * epoch + [rate / 10] * epoch + [rate / 100] * epoch)


def test_an_image_that_breaks_during_a_run_is_its_reason(tmp_path, tiny_protocol, fresh_data, tiny_imagenet):
    fresh_data.setenv("ENGRAMS_DATA", str(tiny_imagenet))
    [entry] = protocol.read(tiny_protocol / "tiny.toml")
    (tiny_imagenet / "tiny-imagenet-200/train/n00000003/images/n00000003_1.JPEG").write_bytes(b"no image")
    run = run_of(entry, "naive", 0)
    record = execute(run, tmp_path, "cpu", "disabled", _quiet, stream_from_disk=True)
    assert record.status == "failed"
    assert record.reason.startswith("Tiny ImageNet: ")
    assert "n00000003_1.JPEG is missing, truncated or corrupt" in record.reason


@pytest.mark.parametrize("flag", [(), ("--stream-from-disk",)])
def test_data_that_are_missing_are_one_line(tmp_path, fresh_data, flag):
    fresh_data.setenv("ENGRAMS_DATA", str(tmp_path))
    done = engrams("run", "split-tiny-imagenet", "naive", "--out", tmp_path / "runs", "--wandb", "disabled", *flag)
    assert done.returncode == 2
    assert "Tiny ImageNet is not here and could not be downloaded" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("run", "split-digits/tsk", "naive"),
            "no protocol is called 'split-digits/tsk'; did you mean 'split-digits/task'?",
        ),
        (("run", "split-digits/task", "nave"), "no strategy is called 'nave'; did you mean 'naive'?"),
        (("table", "nowhere"), "there is no folder nowhere"),
        (("search", "split-digits/task", "naive"), "naive has no hyperparameter to search"),
        (("suite", "digit"), "no suite is called 'digit'; did you mean 'digits'?"),
    ],
)
def test_what_the_user_can_mend_is_one_line(arguments, message):
    done = engrams(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_list_shows_protocols_strategies_and_data():
    done = engrams("list")
    assert done.returncode == 0
    for name in (*protocol.names(), "ewc-online", "avalanche-ewc"):
        assert name in done.stdout
    assert "comes with scikit-learn" in engrams("data").stdout


@pytest.mark.parametrize(
    ("format", "sign"), [("md", "| naive"), ("csv", "split-digits/task,naive"), ("tex", r"\toprule")]
)
def test_table_formats(small_run, format, sign):
    done = engrams("table", small_run[0], "--format", format)
    assert done.returncode == 0
    assert sign in done.stdout
