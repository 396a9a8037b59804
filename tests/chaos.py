"""A suite that is killed over and over ends in the records of one that never was: ``python -m tests.chaos``.

Kills everything, the command alone, or one of its workers, at random moments whose seed is printed: between two
experiences or within one, where a checkpoint is written ten times a second. Then ``test_fuzz.py`` reads 2,000 broken
files and command lines, drawn with the same seed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from engrams.benchmarks.cli.options import settings_of
from engrams.benchmarks.jobs.claims import CLAIM
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.training.checkpoint import INTERVAL, SHARE
from engrams.reports import store

ROOT = Path(__file__).parent.parent
STRATEGIES = ("naive", "ewc", "mas", "l2", "replay", "avalanche-gem", "dgr", "dgr-vae", "mergan-ra")
SMALL = {
    "split-digits/class": ("training.epochs=2", "generator_epochs=2", "gan.steps=30", "gan.width=4"),
    "permuted-digits": ("training.epochs=1", "generator_epochs=1"),
}
"""Protocol -> what is set, so that a run takes seconds."""
KINDS = ("everything", "command", "worker")


class Chaos:
    """One suite, and whoever kills it."""

    def __init__(self, folder: Path, protocol: str, strategies: tuple[str, ...], seed: int):
        self.folder, self.protocol, self.strategies, self.random = folder, protocol, strategies, random.Random(seed)
        self.pids: set[int] = set()
        runs = plan(protocol, strategies, [0], settings_of(list(SMALL[protocol])))
        # In this process, with nobody to kill it.
        done = (execute(run, folder / "whole", "cpu", "disabled", lambda epochs: None) for run in runs)
        self.whole = {record.strategy: record for record in done}
        if (made := folder / "whole" / "classifiers").exists():  # of real images; it takes longer than all the rest
            shutil.copytree(made, folder / "killed" / "classifiers")

    def begin(self, out: str) -> subprocess.Popen:
        """Starts the suite's command, in a group of its own."""
        settings = [word for setting in SMALL[self.protocol] for word in ("--set", setting)]
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks", "run", self.protocol, *self.strategies, "--seeds", "1"),
                *("--out", str(self.folder / out), "--wandb", "disabled", "--workers", "2", *settings),
            ],
            cwd=ROOT,
            env={**os.environ, SHARE: "inf", INTERVAL: "0.1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "errors.txt").open("a"),
            start_new_session=True,
        )

    def kill(self, kind: str, process: subprocess.Popen) -> bool:
        """Kills at a random moment; False if the command had come to its end by then."""
        began = time.monotonic()
        while not (workers := self._workers(process)) and process.poll() is None:
            time.sleep(0.1)
            assert time.monotonic() - began < 120
        time.sleep(self.random.uniform(0, 1.5))
        if process.poll() is not None:
            return False
        workers = self._workers(process) or workers
        if kind == "everything":
            os.killpg(process.pid, signal.SIGKILL)
        elif kind == "command":
            process.kill()
        else:
            victim = self.random.choice(workers)
            if psutil.pid_exists(victim):
                os.kill(victim, signal.SIGKILL)
        return True

    def _workers(self, process: subprocess.Popen) -> list[int]:
        """The processes that the command's server has forked."""
        try:
            family = psutil.Process(process.pid).children(recursive=True)
            self.pids |= {one.pid for one in family}
            return [one.pid for one in family if one.ppid() != process.pid]
        except psutil.NoSuchProcess:
            return []

    def check(self, process: subprocess.Popen) -> None:
        """Lets the suite come to its end in peace and compares it with the one that was never killed."""
        if process.wait(600) and self.begin("killed").wait(600):  # once more: two kills of one run make it a failed one
            raise AssertionError((self.folder / "errors.txt").read_text())
        found = {record.strategy: record for record in store.read_all(self.folder / "killed")}
        assert found.keys() == self.whole.keys()
        for strategy, record in found.items():
            for figures in ("accuracy_matrix", "accuracy_at_initialisation", "metrics", "generated"):
                assert getattr(record, figures) == getattr(self.whole[strategy], figures), (strategy, figures)
        deadline = time.monotonic() + 20
        while (left := [pid for pid in self.pids if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left, f"processes are left: {left}"
        # A process that is killed between its record and its end leaves its claim, which is nobody's then.
        kept = (path.name for path in (self.folder / "killed").rglob("*") if path.is_file() and path.name != CLAIM)
        assert sorted(kept) == sorted(path.name for path in (self.folder / "whole").rglob("*") if path.is_file())


def run(kinds: list[str], protocol: str, strategies: tuple[str, ...], seed: int, folder: Path) -> None:
    """Kills a suite so many times and compares what it ends in.

    Args:
        kinds: one of :data:`KINDS` for every kill.
        protocol: one of :data:`SMALL`.
        strategies: the suite's, one seed each.
        seed: of the moments.
        folder: empty.

    Raises:
        AssertionError: something was lost, differs, or is left over.
    """
    print(f"the moments are drawn with seed {seed}", flush=True)
    chaos = Chaos(folder, protocol, strategies, seed)
    kinds = chaos.random.sample(kinds, len(kinds))
    process = chaos.begin("killed")
    for kind in kinds:
        alive = chaos.kill(kind, process)
        if not alive or kind != "worker":
            process.wait()
            if not alive and all(record.complete for record in store.read_all(folder / "killed")):
                _begin_again(folder / "killed", chaos.random)
            process = chaos.begin("killed")
    chaos.check(process)


def _begin_again(out: Path, draw: random.Random) -> None:
    """The suite was faster than the kills: some of its records are thrown away."""
    paths = sorted(store.paths_below(out))
    for path in draw.sample(paths, max(1, len(paths) // 2)):
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as the suite's processes have, so that results are the same to the bit
    with tempfile.TemporaryDirectory(prefix="engrams-chaos-") as folder:
        kinds = [KINDS[number % len(KINDS)] for number in range(arguments.kills)]
        run(kinds, "split-digits/class", STRATEGIES, arguments.seed, Path(folder))
    print(
        f"{arguments.kills} kills, {len(STRATEGIES)} runs: nothing lost, nothing doubled, equal to the bit", flush=True
    )
    fuzz = (sys.executable, "-m", "pytest", "tests/test_fuzz.py", f"--hypothesis-seed={arguments.seed}")
    sys.exit(subprocess.run(fuzz, cwd=ROOT, env={**os.environ, "ENGRAMS_FUZZ": "2000"}).returncode)


if __name__ == "__main__":
    main()
