"""What a machine does to runs: a folder that cannot be written, a disk that is full."""

import os
import subprocess
import sys

import pytest

from engrams.reports import store
from tests.test_runs import engrams as here

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
