"""Choosing hyperparameters: on validation data, resumable, with its evidence."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
from engrams.benchmarks.data.streams import make_benchmark
from engrams.benchmarks.protocols import schema as protocol
from engrams.benchmarks.studies import search
from engrams.strategies.catalogue import CATALOGUE

from tests.test_runs import engrams

ROOT = Path(__file__).parent.parent
TINY = """
title = "five experiences of two digits, a second a run"
dataset = "digits"
[stream]
kind = "split"
scenarios = ["domain"]
classes_per_experience = 2
class_order = "in-order"
validation_fraction = 0.2
[network]
hidden_size = 16
hidden_layers = 1
[training]
optimizer = "adam"
learning_rate = 1e-3
batch_size = 64
epochs = 1
schedule = "constant"
reset_optimizer = false
[strategies.ewc-online]
gamma = 0.5
[sources]
stream = "a test's"
network = "a test's"
training = "a test's"
"strategies.ewc-online.gamma" = "a test's"
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A protocol of a second a trial, in a folder of its own."""
    monkeypatch.setattr(protocol, "FOLDER", tmp_path / "protocols")
    monkeypatch.setattr(protocol, "chosen_path", lambda name, folder=tmp_path / "protocols": folder / f"{name}.chosen")
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "tiny.toml").write_text(TINY)
    protocol.protocols.cache_clear()
    yield tmp_path
    protocol.protocols.cache_clear()


def trials_of(stdout):
    """(value, outcome) of every trial that a search reported."""
    return re.findall(r"\[\d+/\d+\] \S+ \S+ \w+=(\S+) seed 1000: (.+)", stdout)


def test_the_best_is_written_with_all_that_was_tried(tiny):
    done = engrams("search", protocol.names()[0], "l2", "ewc", "--trials", 5, "--out", tiny / "s")
    assert done.returncode == 0, done.stderr
    name = protocol.names()[0]
    chosen = protocol.read_chosen(protocol.chosen_path(name))
    assert chosen.keys() == {"l2", "ewc"}
    for strategy, choice in chosen.items():
        ((key, value),) = choice.hyperparameters.items()
        tried = {trial[key]: trial["ACC"] for trial in choice.evidence["validation_ACC"]}
        assert len(choice.evidence["validation_ACC"]) == 5
        ended = {tried_value: acc for tried_value, acc in tried.items() if isinstance(acc, float)}
        assert tried[value] == max(ended.values())
        space = CATALOGUE[strategy].search[key]
        assert {space.low, space.high} <= tried.keys(), "half of the trials are spread over the whole range"
        assert all(space.low <= tried_value <= space.high for tried_value in tried)
        assert choice.evidence["command"] == f"python -m benchmarks search {name} {strategy} --trials 5"
        assert choice.evidence["seed"] == search.SEARCH_SEED
    assert len(trials_of(done.stdout)) == 10
    for value, outcome in trials_of(done.stdout):
        assert re.match(r"validation ACC \d+\.\d\d|pruned after \d of 5 experiences", outcome), (value, outcome)
    protocol.protocols.cache_clear()
    assert protocol.get(name).hyperparameters_of("ewc").ewc_lambda == chosen["ewc"].hyperparameters["ewc_lambda"]


def test_a_search_that_is_done_tries_nothing_again_and_more_trials_add(tiny):
    name = protocol.names()[0]
    first = engrams("search", name, "ewc-online", "--trials", 3, "--out", tiny / "s")
    again = engrams("search", name, "ewc-online", "--trials", 3, "--out", tiny / "s")
    assert (len(trials_of(first.stdout)), len(trials_of(again.stdout))) == (3, 0)
    assert "3 of 3 runs have a complete record already" in again.stdout
    more = engrams("search", name, "ewc-online", "--trials", 4, "--out", tiny / "s")
    assert len(trials_of(more.stdout)) == 1
    chosen = protocol.read_chosen(protocol.chosen_path(name))["ewc-online"]
    assert len({trial["ewc_lambda"] for trial in chosen.evidence["validation_ACC"]}) == 4, (
        "a resumed sampler does not draw what it drew before"
    )


def test_the_test_stream_is_not_even_built(tiny, monkeypatch):
    built, data = [], []

    def watch(images, stream, scenario, judge, seed):
        built.append(make_benchmark(images, stream, scenario, judge, seed))
        data.append(images)
        return built[-1]

    monkeypatch.setattr("engrams.benchmarks.training.run.make_benchmark", watch)
    trial = search.Trial(search._run(protocol.get("tiny"), "l2", {"l2_lambda": 1.0}), tiny, 0, 6)
    trial.journal.parent.mkdir(parents=True)
    optuna.create_study(storage=search._storage(trial.journal), study_name="l2").ask()
    assert search._try_out(trial, lambda epochs: None, "cpu", False).acc > 0
    assert [set(benchmark.streams) for benchmark in built] == [{"train", "validation"}]
    used = sum(len(e.dataset) for stream in built[0].streams.values() for e in stream)
    assert used == len(data[0].train_y), "training and validation samples are the training data, nothing else"


@pytest.mark.parametrize(("early", "pruned"), [(0.1, True), (0.95, False)])
def test_only_what_is_among_the_worst_is_pruned(tiny, monkeypatch, early, pruned):
    trial = search.Trial(search._run(protocol.get("tiny"), "l2", {"l2_lambda": 1.0}), tiny, 4, 4)
    trial.journal.parent.mkdir(parents=True)
    study = optuna.create_study(storage=search._storage(trial.journal), study_name="l2", direction="maximize")
    for acc in (0.9, 0.8, 0.7, 0.6):
        before = study.ask()
        for step in (3, 4):
            before.report(acc, step)
        study.tell(before, acc)
    study.ask()

    def learn(run, device, loggers, report, after_experience, stream_from_disk, classifier):
        matrix = []
        for _ in range(5):
            matrix.append([early] * 5)
            after_experience(None, matrix)
        return matrix, []

    monkeypatch.setattr(search, "learn", learn)
    outcome = search._try_out(trial, lambda epochs: None, "cpu", False)
    assert (outcome.pruned, outcome.acc) == (("pruned after 3 of 5 experiences", None) if pruned else (None, early))


def test_a_trial_that_broke_is_tried_again_and_one_that_diverged_is_not(tiny, monkeypatch):
    """What the point is to blame for is a result; what it is not says nothing about it."""
    calls = []

    def in_processes(jobs, work, workers, advanced):
        for job in jobs:
            calls.append(job.run.variant)
            if len(calls) == 1:
                yield job, search.Outcome(broken="out of memory")
            elif len(calls) == 2:
                yield job, search.Outcome(diverged="diverged: the loss became nan")
            else:
                yield job, search.Outcome(acc=0.5)

    monkeypatch.setattr(search, "in_processes", in_processes)
    first = engrams("search", "tiny", "l2", "--trials", 4, "--out", tiny / "s")
    assert first.returncode == 2
    assert "l2: 1 of 4 trials broke; the same command tries again" in first.stderr
    assert engrams("search", "tiny", "l2", "--trials", 4, "--out", tiny / "s").returncode == 0
    assert len(calls) == 5
    assert calls[4] == calls[0]
    evidence = protocol.read_chosen(protocol.chosen_path("tiny"))["l2"].evidence["validation_ACC"]
    assert sorted(str(trial["ACC"]) for trial in evidence) == ["0.5"] * 3 + ["diverged: the loss became nan"]


def test_killed_in_the_middle_it_repeats_no_finished_trial(tiny):
    """The real command in a process of its own, killed without a chance to clean up."""
    out, chosen = tiny / "s", tiny / "chosen"
    script = (
        "import sys; from pathlib import Path; from benchmarks import protocol, __main__ as cli\n"
        f"protocol.FOLDER = Path({str(tiny / 'protocols')!r})\n"
        f"protocol.chosen_path = lambda name, folder=None: Path({str(chosen)!r}) / name\n"
        f"sys.argv = ['engrams', 'search', 'tiny', 'l2', '--trials', '16', '--out', {str(out)!r}]\ncli.main()"
    )
    log = tiny / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-uc", script], cwd=ROOT, stdout=file, stderr=file)
    deadline = time.monotonic() + 120
    while len(trials_of(log.read_text())) < 2:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "workers end with their parent"
    before = trials_of(log.read_text())
    after = subprocess.run([sys.executable, "-uc", script], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert after.returncode == 0, after.stderr
    resumed = trials_of(after.stdout)
    assert not {value for value, _ in before} & {value for value, _ in resumed}
    evidence = protocol.read_chosen(chosen / "tiny")["l2"].evidence["validation_ACC"]
    assert len(evidence) == len({trial["l2_lambda"] for trial in evidence}) == 16
    assert {f"{trial['l2_lambda']:g}" for trial in evidence} >= {value for value, _ in before}


def test_what_the_user_can_mend_is_one_line(tiny):
    name = protocol.names()[0]
    journal = tiny / "s" / name / "ewc" / "study.journal"
    assert engrams("search", name, "ewc", "--trials", 1, "--out", tiny / "s").returncode == 0
    (tiny / "protocols" / "tiny.toml").write_text(TINY.replace("batch_size = 64", "batch_size = 32"))
    protocol.protocols.cache_clear()
    done = engrams("search", name, "ewc", "--trials", 2, "--out", tiny / "s")
    assert done.returncode == 2
    assert f"{journal} was made with other settings" in done.stderr
    journal.write_text("{ not a journal\n{}\n")
    done = engrams("search", name, "ewc", "--trials", 1, "--out", tiny / "s")
    assert done.returncode == 2
    assert f"{journal} is no journal of a search" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
