"""Where runs go: a real SLURM queue and a real Ray cluster on this machine end in the records of processes here.

``make cluster`` has twenty runs a place; otherwise there are as few as show everything.
"""

import io
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
from rich.console import Console

from engrams.benchmarks.cli.app import main
from engrams.benchmarks.jobs import claims, ray, slurm, status
from engrams.benchmarks.jobs.elsewhere import TOLD, Errand, epochs_told
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.place import PlaceError
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.jobs.suite import run_all
from engrams.benchmarks.training import checkpoint
from engrams.reports import files, store
from engrams.reports.wandb.settings import DISABLED, WandBSettings
from tests.slurm import Slurm, why_not
from tests.waiting import until

pytestmark = pytest.mark.slow

MANY = int(os.environ.get("ENGRAMS_CLUSTER_RUNS", "4"))
EPOCHS = {"training.epochs": 2}


def runs_of(count=MANY):
    return plan("split-digits/task", ["naive", "ewc"], range(-(-count // 2)), EPOCHS | {"ewc_lambda": 10})[:count]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The records of the same runs, done in this process."""
    out = tmp_path_factory.mktemp("here")
    return {run.name: execute(run, out, "cpu", "disabled", lambda epochs: None) for run in runs_of()}


def assert_equal(records, here):
    """All there is to a record but what it took and its machine."""
    for run, record in zip(runs_of(), records, strict=True):
        assert record.complete, record.reason
        own, others = (one.model_dump(exclude={"seconds", "costs", "environment"}) for one in (record, here[run.name]))
        assert own == others, run.name


HASH = int(
    subprocess.run(
        [sys.executable, "-c", "print(hash('cat'))"],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        check=True,
    ).stdout
)


@dataclass(frozen=True)
class HashOfAText:
    """Work in place of a run's."""

    out: Path

    def __call__(self, run, report):
        (self.out / "hash").write_text(str(hash("cat")))
        return hash("cat")


@pytest.fixture
def shown():
    """A display, and what it has said."""
    console = Console(file=io.StringIO(), width=200)
    display = Display(console)
    display.said = console.file.getvalue
    return display


def engrams(*arguments):
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out), patch.object(sys, "argv", ["engrams", *map(str, arguments)]):
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0, out.getvalue()
    return 0, out.getvalue()


# --- SLURM ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def queue_here(tmp_path_factory):
    """A cluster, to which SLURM's commands and the jobs of this process go."""
    if problem := why_not():
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patched, Slurm(folder) as cluster:
        for name, value in {**cluster.environment, checkpoint.SHARE: "inf"}.items():
            patched.setenv(name, value)
        patched.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        patched.setattr(slurm, "PAUSES", (0.5, 1.0))
        patched.setattr(slurm, "SAYS_EVERY", 1.0)
        yield cluster
    left = [
        one for one in psutil.process_iter(["name", "cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or ())
    ]
    assert not left, "nothing of the cluster goes on"


def test_a_suite_in_a_queue_that_is_meddled_with_ends_in_the_same_records(queue_here, here, shown, tmp_path):
    out, runs = tmp_path / "runs", runs_of()
    place = slurm.Slurm(out, shown.say)
    cancelled, requeued = runs[-1].folder(out), runs[2].folder(out)

    # It is interrupted as soon as something goes on there; what is in the queue is not.
    with patch.object(shown, "advanced", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        run_all(runs, out, DISABLED, place, shown)
    number = slurm.queue(out)[cancelled].id.partition("_")[0]
    assert f"{MANY} runs in the queue as job {number}." in shown.said()
    assert f"{MANY} runs in the queue still; 'engrams status {out}' shows them, 'scancel {number}'" in shown.said()
    seen, unseen = status.look(out, [])
    assert not unseen
    assert len(seen) == MANY
    assert "waiting" in {one.state for one in seen}

    # While it waits again one is cancelled, one is put back that runs, and the controller is not there for a while.
    def meddle():
        until(lambda: "in the queue already" in shown.said())
        queue_here.tell("scancel", slurm.queue(out)[cancelled].id)
        until(lambda: slurm.queue(out)[requeued].state == "RUNNING")
        assert "running" in {one.state for one in status.look(out, [])[0] if out / one.folder == requeued}
        queue_here.tell("scontrol", "requeue", slurm.queue(out)[requeued].id)
        queue_here.stop_controller()
        until(lambda: "SLURM does not answer" in shown.said())
        queue_here.start_controller()

    with ThreadPoolExecutor() as threads:
        meddling = threads.submit(meddle)
        records = run_all(runs, out, DISABLED, place, shown)
        meddling.result()
    assert [record.reason for record in records[:-1]] == [None] * (MANY - 1)
    assert re.search("was taken out of the queue|ended as CANCELLED", str(records[-1].reason))
    assert shown.said().count("runs in the queue as job") == 1, "none was submitted twice"

    # The same command once more does what is left, and W&B has it.
    records = run_all(runs, out, WandBSettings("offline"), place, shown)
    shown.say_afterwards()
    assert "1 run in the queue as job" in shown.said()
    assert "W&B (offline): 1 run kept" in shown.said()
    assert_equal(records, here)
    assert [one.state for one in status.look(out, [])[0]] == ["done"] * MANY
    assert not list(out.rglob(TOLD))


def test_a_text_has_the_hash_in_a_queue_that_it_has_here(queue_here, shown, tmp_path, monkeypatch):
    """Or the order of a set, by which somebody numbers classes, is another there."""
    monkeypatch.setattr(slurm, "UNSEEN", 1.0)
    assert len(list(slurm.Slurm(tmp_path, shown.say).do(runs_of(1), HashOfAText(tmp_path), lambda *_: None))) == 1
    assert int((tmp_path / "hash").read_text()) == HASH
    assert "PYTHONHASHSEED" not in os.environ


def test_what_slurm_does_not_take_is_said_in_its_own_words(queue_here, shown, tmp_path):
    place = slurm.Slurm(tmp_path, shown.say, slurm.parameters("nowhere", None, None, None, {}))
    with pytest.raises(PlaceError, match=r"SLURM does not take the runs: .*invalid partition"):
        run_all(runs_of(1), tmp_path, DISABLED, place, shown)
    assert slurm.queue(tmp_path) == {}
    assert not list((tmp_path / slurm.FOLDER).glob(f"{slurm.PREFIX}*")), "nothing is left of it"


def test_an_sbatch_that_fails_and_says_nothing_is_not_quoted(monkeypatch, shown, tmp_path):
    pytest.importorskip("submitit")
    for name, status_of_it in (("sbatch", 3), ("srun", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {status_of_it}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(PlaceError, match="SLURM does not take the runs: sbatch ended with status 3 and says nothing"):
        run_all(runs_of(1), tmp_path / "runs", DISABLED, slurm.Slurm(tmp_path / "runs", shown.say), shown)


def test_what_is_asked_for_reaches_sbatch():
    submitit = pytest.importorskip("submitit.slurm.slurm")
    told = slurm.parameters("long", "1-12:00:00", 2, 7, {"mem": "8G", "account": "me", "switches": 1})
    lines = submitit._make_sbatch_string("x", "folder", map_count=9, **told).splitlines()
    wanted = {"partition=long", "time=2160", "gpus-per-node=2", "array=0-8%7", "mem=8G", "account=me", "switches=1"}
    assert {f"#SBATCH --{option}" for option in wanted | {"requeue", "cpus-per-task=1"}} <= set(lines)


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("90", 90), ("1:30", 2), ("1:30:00", 90), ("1-0", 1440), ("1-12:30", 2190), ("0-0:0:1", 1), ("2:00:01", 121)],
)
def test_a_time_is_read_as_sbatch_reads_it(time, minutes):
    assert slurm.minutes_of(time) == minutes


@pytest.mark.parametrize("time", ["", "soon", "0", "1:2:3:4", "-5", "1-", "0:00"])
def test_a_time_that_is_none_is_named(time):
    with pytest.raises(PlaceError, match="write it as sbatch has it"):
        slurm.minutes_of(time)


# --- Ray --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_nodes(monkeypatch):
    """A cluster of two nodes with a core each, and its second node."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # else other work on this machine starves them
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv(checkpoint.SHARE, "inf")
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    before = set(psutil.Process().children(recursive=True))
    cluster = Cluster(initialize_head=True, head_node_args=node)
    yield cluster, cluster.add_node(**node)
    family = set(psutil.Process().children(recursive=True)) - before
    cluster.shutdown()
    assert not psutil.wait_procs(family, timeout=30)[1], "nothing of the cluster goes on"


def test_a_suite_on_a_cluster_that_loses_a_node_ends_in_the_same_records(two_nodes, here, shown, tmp_path):
    cluster, second = two_nodes
    folders = [run.folder(tmp_path) for run in runs_of()]

    def remove():
        until(lambda: sum(map(claims.is_claimed, folders)) == 2)  # one a node
        cluster.remove_node(second, allow_graceful=False)

    with ThreadPoolExecutor() as threads:
        removing = threads.submit(remove)
        records = run_all(runs_of(), tmp_path, DISABLED, ray.Ray(tmp_path, shown.say, cluster.address), shown)
        removing.result()
    assert "Ray: 2 nodes, 2 CPUs" in shown.said()
    assert_equal(records, here)
    assert not list(tmp_path.rglob(TOLD))
    place = ray.Ray(tmp_path, shown.say, cluster.address)
    assert [found for _, found in place.do(runs_of(1), HashOfAText(tmp_path), lambda *_: None)] == [HASH]


def test_what_is_asked_for_is_asked_of_ray():
    assert ray.resources(0.25, {"cpus": 2, "memory": 4e9, "tpu": 1}) == {
        **{"num_cpus": 2, "num_gpus": 0.25, "memory": 4e9},
        "resources": {"tpu": 1},
    }
    with pytest.raises(PlaceError, match="memory=4G: Ray has numbers"):
        ray.resources(None, {"memory": "4G"})


# --- what they share --------------------------------------------------------------------------------------------------


def once_claimed(run, report):
    """Does nothing while somebody else has the run's folder."""
    try:
        with claims.claim(run):
            report(3)
            return epochs_told(run), os.environ["ENGRAMS_OFFLINE"]
    except claims.Claimed:
        return None


def test_an_errand_waits_until_nobody_else_does_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("engrams.benchmarks.jobs.elsewhere.WAITS", 0.1)
    monkeypatch.setenv("ENGRAMS_OFFLINE", "")  # so that it is as before in the end
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    errand = Errand(once_claimed, tmp_path, tmp_path)
    with claims.claim(tmp_path):
        assert claims.is_claimed(tmp_path)
        doing = threading.Thread(target=lambda: outcomes.append(errand()))
        outcomes = []
        doing.start()
        time.sleep(0.3)
        assert not outcomes
    doing.join()
    assert outcomes == [(3, "1")]
    assert not claims.is_claimed(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--on", "slrum"], "there are local, slurm, ray and ray://HOST:PORT"),
        (["--partition", "long"], "--partition is for --on slurm"),
        (["--on", "ray", "--time", "9"], "--time is for --on slurm"),
        (["--gpus", "1"], "--gpus is for --on slurm and --on ray"),
        (["--on", "ray", "--ask", "memory"], "write KEY=VALUE, mem=8G for example"),
        (["--on", "slurm", "--gpus", "0.5"], "SLURM gives a run whole GPUs"),
        (["--on", "slurm", "--ask", "job-name=x"], "--ask job-name: this is Engrams' to say"),
        (["--on", "slurm", "--time", "soon"], "--time soon: write it as sbatch has it"),
    ],
)
def test_what_a_place_does_not_have_is_said_in_one_line(monkeypatch, tmp_path, options, said):
    monkeypatch.setattr(slurm, "check", lambda: None)
    code, output = engrams("run", "split-digits/task", "naive", *options, "--out", tmp_path / "runs")
    assert code == 2
    assert output.startswith("error: ")
    assert said in output
    assert output.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_package_or_a_program_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    command = ("run", "split-digits/task", "naive", "--on")
    assert "sbatch is not on PATH" in engrams(*command, "slurm")[1]
    for module in (slurm, ray):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert "pip install 'engrams[slurm]'" in engrams(*command, "slurm")[1]
    assert "pip install 'engrams[ray]'" in engrams(*command, "ray://head:10001")[1]


# --- status -----------------------------------------------------------------------------------------------------------


def test_a_status_tells_what_goes_on_from_what_has_ended(here, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # no queue to ask
    done, failed, going_on, stopped = (run.folder(tmp_path) for run in runs_of(4))
    record = here[runs_of(1)[0].name]
    store.write(record, done)
    assert store.CHECKPOINT == checkpoint.FILE
    for folder in (going_on, stopped):
        folder.mkdir(parents=True)
        (folder / store.CHECKPOINT).touch()
    gone = record.model_copy(update={"status": "failed", "reason": "no room", "seed": 1, "accuracy_matrix": []})
    store.write(gone, failed)
    with claims.claim(going_on):
        (going_on / TOLD).write_text("7")
        code, said = engrams("status", tmp_path)
    assert code == 0
    assert "1 done, 1 running, 1 failed, 1 stopped" in said
    assert ": 7 epochs" in said
    assert ": no room" in said
    assert "not seen" not in said, "nothing was ever submitted"
    assert engrams("status", tmp_path / "nowhere")[0] == 2

    submission = tmp_path / slurm.FOLDER / f"{slurm.PREFIX}1"
    submission.mkdir(parents=True)
    files.write_json(submission / slurm.RUNS, {"runs": [stopped.relative_to(tmp_path).as_posix()]})
    assert "what is in a queue is not seen: squeue is not on PATH" in engrams("status", tmp_path)[1]
