"""What a machine does to runs: folders that cannot be written, or not any more, a full disk, a clock that jumps."""

import io
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.jobs.suite import run_all
from engrams.reports import store
from engrams.reports.wandb.settings import DISABLED
from tests.test_runs import engrams as here

pytestmark = pytest.mark.slow

RUN = ("run", "split-digits/class", "--seeds", "1", "--workers", "1", "--wandb", "disabled", "--experiences", "2")


def engrams(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "engrams.benchmarks", *map(str, arguments)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this process cannot mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


class ThisProcess:
    """A place where runs are done: here, one after another."""

    outlives = False

    def do(self, runs, work, advanced):
        for run in runs:
            yield run, work(run, lambda epochs, run=run: advanced(run, epochs))


def all_of(out, meanwhile=lambda run, epochs: None):
    """Two seeds, and what the display said; ``meanwhile`` is called after every epoch."""
    runs = plan("split-digits/class", ["naive"], [0, 1], {"training.epochs": 2}, 2)
    console = Console(file=io.StringIO(), width=300)
    display = Display(console)
    told = display.advanced

    def advanced(run, epochs):
        told(run, epochs)
        meanwhile(run, epochs)

    display.advanced = advanced
    return run_all(runs, out, DISABLED, ThisProcess(), display), console.file.getvalue()


def test_a_home_that_cannot_be_written_is_said_in_one_line(tmp_path):
    home = tmp_path / "file"
    home.write_text("")
    done = engrams(*RUN, "naive", "--out", tmp_path / "runs", HOME=str(home))
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: Avalanche keeps its settings in {home}/.avalanche, which cannot be written: "
    )
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_a_temporary_folder_that_is_not_there_does_not_matter(tmp_path):
    done = engrams(*RUN, "naive", "--out", tmp_path / "runs", TMPDIR=str(tmp_path / "nowhere"))
    assert done.returncode == 0, done.stderr
    assert [record.status for record in store.read_all(tmp_path / "runs")] == ["complete"]


def test_a_full_disk_costs_the_runs_that_cannot_be_written_and_says_so(small_disk):
    (small_disk / "ballast").write_bytes(bytes(60_000))
    done = engrams(*RUN, "naive", "replay", "--out", small_disk / "runs")
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2)
    assert "No space left on device" in said
    assert "Traceback" not in said
    (small_disk / "ballast").unlink()
    assert here(*RUN, "naive", "--out", small_disk / "runs").returncode == 0
    assert [record.status for record in store.read_all(small_disk / "runs")].count("complete") >= 1


def test_a_search_goes_on_after_a_full_disk_with_the_trials_that_it_has(small_disk, tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text('extends = "split-digits"\n')
    search = ("search", f"{own}/class", "l2", "--trials", 3, "--out", small_disk / "s", "--wandb", "disabled")
    (small_disk / "ballast").write_bytes(bytes(61_000))  # one page is left: its end cuts a line
    done = engrams(*search)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: the trials cannot be written to {small_disk}/s: No space")
    (small_disk / "ballast").unlink()
    again = engrams(*search)
    assert again.returncode == 0, again.stderr
    assert done.stdout.count("validation ACC") + again.stdout.count("validation ACC") >= 3


def read_only(folder, is_so):
    """Not by its permissions, which do not hold for root."""
    subprocess.run(["chattr", "+i" if is_so else "-i", folder], capture_output=True, check=True)


def test_a_folder_that_turns_read_only_costs_the_run_that_goes_on_and_says_so(tmp_path):
    try:
        read_only(tmp_path, True)
        read_only(tmp_path, False)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this process cannot make a folder read-only for itself: {error}")
    turned = []

    def turns_read_only(run, epochs):
        if run.seed == 1 and epochs == 3:
            turned.append(run.folder(tmp_path / "runs"))
            read_only(turned[0], True)

    try:
        records, said = all_of(tmp_path / "runs", turns_read_only)
    finally:
        for folder in turned:
            read_only(folder, False)
    assert [record.status for record in records] == ["complete", "failed"]
    assert "Operation not permitted" in records[1].reason
    assert "\n" not in records[1].reason
    assert records[1].reason in said
    again, _ = all_of(tmp_path / "runs")
    assert [record.status for record in again] == ["complete"] * 2
    assert again[0] == records[0], "it was not run again"


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """A day back while the first runs, two forth while the second does."""
    plain, _ = all_of(tmp_path / "plain")
    now, days = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: now() + 86400 * days[0])

    def jumps(run, epochs):
        days[0] = -1 if run.seed == 0 else 1

    records, said = all_of(tmp_path / "runs", jumps)
    assert "day" not in said
    assert " h " not in said
    assert [record.accuracy_matrix for record in records] == [record.accuracy_matrix for record in plain]
    assert all(0 < record.seconds < 60 for record in records)
    assert store.read_all(tmp_path / "runs") == records
