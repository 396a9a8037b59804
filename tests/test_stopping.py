"""Ctrl-C and SIGTERM: the step is finished, a checkpoint kept, and the same command goes on; once more ends at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.jobs.processes import in_processes
from engrams.benchmarks.training import stopping
from engrams.benchmarks.training.checkpoint import FILE, INTERVAL, SHARE
from engrams.reports import store
from tests.test_runs import engrams

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SETTINGS = {"training.epochs": 60}
COMMAND = ["run", "split-digits/task", "naive", "--set", "training.epochs=60", "--experiences", "2", "--seeds", "1"]


def command(out):
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *COMMAND, "--out", str(out), "--wandb", "disabled"],
        cwd=ROOT,
        env={**os.environ, SHARE: "inf", INTERVAL: "0.5"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("told", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, id="as a queue warns")]
)
def test_what_is_told_to_end_keeps_its_step_and_goes_on(tmp_path, told, status):
    (run,) = plan("split-digits/task", ["naive"], [0], SETTINGS, 2)
    folder = run.folder(tmp_path)
    process = command(tmp_path)
    began = time.monotonic()
    while not (folder / FILE).exists() and time.monotonic() < began + 120:
        time.sleep(0.02)
    time.sleep(0.3)  # or it is still syncing that one, which is then that of the step that it is in
    earlier = (folder / FILE).stat().st_mtime_ns
    os.killpg(process.pid, told)  # every process of it, as a terminal and a queue do
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    assert "under way: 1 to go on from a checkpoint, 0 to begin again" in output
    assert "the same command goes on from there" in output
    assert "Traceback" not in output
    assert [path.name for path in folder.iterdir()] == [FILE]
    assert (folder / FILE).stat().st_mtime_ns > earlier
    if told == signal.SIGTERM:
        return
    assert engrams(*COMMAND, "--out", tmp_path, "--wandb", "disabled").returncode == 0
    whole = execute(run, tmp_path / "whole", "cpu", "disabled", lambda epochs: None)
    assert store.read(folder / store.RECORD).accuracy_matrix == whole.accuracy_matrix


def hold_on(job, report):
    """Works on, whatever it is told."""
    with stopping.heeded():
        report(os.getpid())
        time.sleep(60)


def end_slowly(job, report):
    """Takes a second to keep what it has, once it is told to end."""
    with stopping.heeded():
        report(1)
        while not stopping.asked():
            time.sleep(0.05)
        time.sleep(1)
        job.mark.write_text("kept")


def test_a_warning_to_every_process_leaves_the_workers_time(tmp_path):
    mark = tmp_path / "mark"

    def advanced(job, epochs):
        for process in psutil.Process().children():
            if "forkserver" in " ".join(process.cmdline()):
                process.terminate()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(in_processes([SimpleNamespace(name="a job", mark=mark)], end_slowly, 1, advanced))
    assert mark.read_text() == "kept"


def test_once_more_ends_at_once():
    processes, began = [], []

    def advanced(job, pid):
        processes.append(pid)
        began.append(time.monotonic())
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)  # the second one
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(in_processes([SimpleNamespace(name="a job")], hold_on, 1, advanced))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert time.monotonic() - began[0] < stopping.PATIENCE / 2
    assert not psutil.pid_exists(processes[0])


@pytest.mark.parametrize(("heeds", "status"), [(True, -signal.SIGALRM), (False, stopping.STATUS)])
def test_no_step_is_waited_for_without_end(heeds, status):
    """Nor is anybody who does not heed."""
    script = f"""
import contextlib, os, signal, time
from engrams.benchmarks.training import stopping
stopping.PATIENCE = 1
stopping.on_sigterm()
with stopping.heeded() if {heeds} else contextlib.nullcontext():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=20).returncode == status
