"""Choosing hyperparameters: on validation data, resumable, with its evidence."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import optuna
import psutil
import pytest

from engrams.benchmarks.data.streams import make_benchmark
from engrams.benchmarks.protocols import registry as protocol
from engrams.benchmarks.studies import search
from engrams.strategies import catalogue
from tests.test_runs import engrams

pytestmark = pytest.mark.slow

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
def tiny(tmp_path):
    """A protocol of a second a trial, in a folder of its own."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def chosen_beside(path: Path):
    return protocol.read_chosen(path.parent / "chosen" / path.name)


def trials_of(stdout):
    """(value, outcome) of every trial that a search reported."""
    return re.findall(r"\[\d+/\d+\] \S+ \S+ \w+=(\S+) seed 1000: (.+)", stdout)


def test_the_best_is_written_with_all_that_was_tried(tiny):
    done = engrams("search", tiny, "l2", "ewc", "--trials", 5, "--out", tiny.parent / "s")
    assert done.returncode == 0, done.stderr
    chosen = chosen_beside(tiny)
    assert chosen.keys() == {"l2", "ewc"}
    for strategy, choice in chosen.items():
        ((key, value),) = choice.hyperparameters.items()
        tried = {trial[key]: trial["ACC"] for trial in choice.evidence["validation_ACC"]}
        assert len(choice.evidence["validation_ACC"]) == 5
        ended = {tried_value: acc for tried_value, acc in tried.items() if isinstance(acc, float)}
        assert tried[value] == max(ended.values())
        space = catalogue.get(strategy).search[key]
        assert {space.low, space.high} <= tried.keys(), "half of the trials are spread over the whole range"
        assert all(space.low <= tried_value <= space.high for tried_value in tried)
        assert choice.evidence["command"] == f"engrams search {tiny} {strategy} --trials 5"
        assert choice.evidence["seed"] == search.SEARCH_SEED
        at_an_end = value in (min(tried), max(tried))
        assert f"{strategy}: {key} {value:g} is at the " in done.stdout or not at_an_end
    assert len(trials_of(done.stdout)) == 10
    for value, outcome in trials_of(done.stdout):
        assert re.match(r"validation ACC \d+\.\d\d|pruned after \d of 5 experiences", outcome), (value, outcome)
    ewc = catalogue.get("ewc")
    assert protocol.get(str(tiny)).hyperparameters_of(ewc).ewc_lambda == chosen["ewc"].hyperparameters["ewc_lambda"]


def test_what_was_chosen_under_other_settings_is_said_to_be_in_one_line(tiny):
    ewc = catalogue.get("ewc")
    assert engrams("search", tiny, "ewc", "--trials", 1, "--out", tiny.parent / "s").returncode == 0
    assert protocol.get(str(tiny)).stale(ewc) is None
    run = ("run", tiny, "ewc", "--seeds", 1, "--dry-run", "--out", tiny.parent / "runs")
    assert "was chosen under other settings" not in engrams(*run).stdout
    tiny.write_text(TINY.replace("batch_size = 64", "batch_size = 32"))
    shown = engrams(*run).stdout
    assert "tiny: ewc_lambda of ewc was chosen under other settings than these" in shown
    assert f"'engrams search {tiny} ewc' chooses anew" in shown
    other = protocol.get(str(tiny), {"training.batch_size": 64})
    assert other.stale(ewc) is None, "what decides is compared, not the file"


def test_a_search_that_is_done_tries_nothing_again_and_more_trials_add(tiny):
    first = engrams("search", tiny, "ewc-online", "--trials", 3, "--out", tiny.parent / "s")
    again = engrams("search", tiny, "ewc-online", "--trials", 3, "--out", tiny.parent / "s")
    assert (len(trials_of(first.stdout)), len(trials_of(again.stdout))) == (3, 0)
    assert "3 of 3 runs have a complete record already" in again.stdout
    more = engrams("search", tiny, "ewc-online", "--trials", 4, "--out", tiny.parent / "s")
    assert len(trials_of(more.stdout)) == 1
    chosen = chosen_beside(tiny)["ewc-online"]
    assert len({trial["ewc_lambda"] for trial in chosen.evidence["validation_ACC"]}) == 4, (
        "a resumed sampler does not draw what it drew before"
    )


def test_the_test_stream_is_not_even_built(tiny, monkeypatch):
    built, data = [], []

    def watch(images, stream, scenario, judge, seed):
        built.append(make_benchmark(images, stream, scenario, judge, seed))
        data.append(images)
        return built[-1]

    monkeypatch.setattr("engrams.benchmarks.training.build.make_benchmark", watch)
    trial = search.Trial(l2_run(tiny), tiny.parent, {})
    assert search._try_out(trial, lambda epochs: None, "cpu", False).acc[-1] > 0
    assert [set(benchmark.streams) for benchmark in built] == [{"train", "validation"}]
    used = sum(len(e.dataset) for stream in built[0].streams.values() for e in stream)
    assert used == len(data[0].train_y), "training and validation samples are the training data, nothing else"


def l2_run(path: Path):
    return search._run(protocol.get(str(path)), catalogue.get("l2"), {"l2_lambda": 1.0})


@pytest.mark.parametrize(("early", "pruned"), [(0.1, True), (0.95, False)])
def test_only_what_is_among_the_worst_is_pruned(tiny, monkeypatch, early, pruned):
    study = optuna.create_study(direction="maximize")
    for acc in (0.9, 0.8, 0.7, 0.6):
        assert search._least(study, 5, before_pruning=4) == {}
        before = study.ask()
        for step in (3, 4):
            before.report(acc, step)
        study.tell(before, acc)
    least = search._least(study, 5, before_pruning=4)
    assert least == pytest.approx({3: 0.63, 4: 0.63}), "a tenth of the way from the worst to the best but two"

    def learn(run, device, watchers, report, stream_from_disk, classifier):
        matrix = []
        for _ in range(5):
            matrix.append([early] * 5)
            for watcher in watchers:
                watcher.after_experience(None, matrix, {})

    monkeypatch.setattr("engrams.benchmarks.training.learn.learn", learn)
    outcome = search._try_out(search.Trial(l2_run(tiny), tiny.parent, least), lambda epochs: None, "cpu", False)
    assert (outcome.pruned, len(outcome.acc)) == (("pruned after 3 of 5 experiences", 3) if pruned else (None, 5))


def test_a_trial_that_broke_is_tried_again_and_one_that_diverged_is_not(tiny, monkeypatch):
    """What the point is to blame for is a result; what it is not says nothing about it."""
    calls = []

    def in_processes(jobs, work, workers, advanced):
        for job in jobs:
            calls.append(job.run.variant)
            if len(calls) == 1:
                yield job, search.Outcome([], broken="out of memory")
            elif len(calls) == 2:
                yield job, search.Outcome([0.3], diverged="diverged: the loss became nan")
            else:
                yield job, search.Outcome([0.2, 0.5])

    monkeypatch.setattr(search, "in_processes", in_processes)
    first = engrams("search", tiny, "l2", "--trials", 4, "--out", tiny.parent / "s")
    assert first.returncode == 2
    assert "l2: 1 of 4 trials broke; the same command tries again" in first.stderr
    assert engrams("search", tiny, "l2", "--trials", 4, "--out", tiny.parent / "s").returncode == 0
    assert len(calls) == 5
    assert calls[4] == calls[0]
    evidence = chosen_beside(tiny)["l2"].evidence["validation_ACC"]
    assert sorted(str(trial["ACC"]) for trial in evidence) == ["0.5"] * 3 + ["diverged: the loss became nan"]


def test_killed_in_the_middle_it_repeats_no_finished_trial(tiny):
    """The real command in a process of its own, killed without a chance to clean up."""
    words = ["search", str(tiny), "l2", "--trials", "10", "--out", str(tiny.parent / "s")]
    command = [sys.executable, "-u", "-m", "benchmarks", *words, "--workers", "1"]
    log = tiny.parent / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
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
    after = engrams(*words)
    assert after.returncode == 0, after.stderr
    resumed = trials_of(after.stdout)
    assert not {value for value, _ in before} & {value for value, _ in resumed}
    evidence = chosen_beside(tiny)["l2"].evidence["validation_ACC"]
    assert len(evidence) == len({trial["l2_lambda"] for trial in evidence}) == 10
    assert {f"{trial['l2_lambda']:g}" for trial in evidence} >= {value for value, _ in before}


def test_a_search_has_a_lock_of_its_own_and_takes_away_what_a_killed_one_left_of_optunas(tiny):
    """Optuna 4.1 would wait for ever for whoever has the link, Optuna 5 for half a minute."""
    entry, l2 = protocol.get(str(tiny)), catalogue.get("l2")
    link = tiny.parent / "s" / "tiny" / "l2" / "study.journal.lock"
    link.parent.mkdir(parents=True)
    link.symlink_to("of one that was killed")
    with ExitStack() as locks:
        study = search._study(entry, l2, 1, tiny.parent / "s", locks)
        assert not link.is_symlink()
        assert search._finished(study) == []
        with ExitStack() as others, pytest.raises(search.SuiteError, match="another search is going on"):
            search._study(entry, l2, 1, tiny.parent / "s", others)
    with ExitStack() as locks:
        search._study(entry, l2, 1, tiny.parent / "s", locks)


def test_whoever_waits_to_write_a_choice_still_keeps_others_out(tiny):
    """The lock's file stays: were it removed, two would hold "it" at once, and a choice of one of them be lost."""
    lock = tiny.parent / "chosen" / "tiny.lock"
    lock.parent.mkdir()
    lock.touch()
    waits = lock.open()
    assert engrams("search", tiny, "l2", "--trials", 1, "--out", tiny.parent / "s").returncode == 0
    assert os.path.samestat(os.fstat(waits.fileno()), lock.stat())
    waits.close()
    assert "l2" in chosen_beside(tiny)


def test_a_range_that_is_tried_out_ends_the_search(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "narrow.py").write_text(
        "from engrams.strategies import Hyperparameters, LogUniform, Strategy\n"
        "from engrams.strategies.baselines import L2Plugin\n\n\nclass Narrow(Hyperparameters):\n"
        "    strength: float\n\n\nnarrow = Strategy(\n    hyperparameters=Narrow,\n"
        "    search={'strength': LogUniform(1.0, 1.001)},\n    plugin=lambda h: L2Plugin(h.strength),\n)\n"
    )
    done = engrams("search", tiny, "narrow.py:narrow", "--trials", 4, "--out", "s", "--wandb", "disabled")
    assert done.returncode == 2
    assert "the last 100 proposals had all been tried; ask for --trials 1, or give its search a wider" in done.stderr
    done = engrams("search", tiny, "narrow.py:narrow", "--trials", 1, "--out", "s", "--wandb", "disabled")
    assert done.returncode == 0, done.stderr


def test_what_the_user_can_mend_is_one_line(tiny):
    out = tiny.parent / "s"
    journal = out / "tiny" / "ewc" / "study.journal"
    assert engrams("search", tiny, "ewc", "--trials", 1, "--out", out).returncode == 0
    tiny.write_text(TINY.replace("batch_size = 64", "batch_size = 32"))
    done = engrams("search", tiny, "ewc", "--trials", 2, "--out", out)
    assert done.returncode == 2
    assert f"{journal} was made with other settings" in done.stderr
    journal.write_text("{ not a journal\n{}\n")
    done = engrams("search", tiny, "ewc", "--trials", 1, "--out", out)
    assert done.returncode == 2
    assert f"{journal} is no journal of a search" in done.stderr
