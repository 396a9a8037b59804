"""Data of one's own that are mended while a process goes on, a notebook's say: what was kept of them is not used."""

import weakref

import numpy as np
import pytest
from rich.console import Console

from engrams.benchmarks.data import names
from engrams.benchmarks.data.datasets import class_count, load
from engrams.benchmarks.data.streams import prepared
from engrams.benchmarks.jobs import sizes
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.jobs.processes import Here
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.jobs.sizes import Data
from engrams.benchmarks.jobs.suite import run_all
from engrams.benchmarks.protocols.schema import Images
from engrams.reports.wandb.settings import DISABLED

FUNCTION = """
import numpy as np

def data():
    x, y = np.full((80, 5), {0}.0), np.arange(80) % {0}
    return x, y, x, y
"""
PROTOCOL = 'extends = "split-digits"\ndataset = "npz:{}"\n[stream]\nscenarios = ["class"]\n'
READS = "import numpy as np\ndef data():\n    x, y = np.ones((80, 5)), np.load({!r})\n    return x, y, x, y\n"
BENCHMARK = """
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from torch.utils.data import TensorDataset

def mine():
    y = torch.arange(40) % 4
    data = TensorDataset(torch.zeros(40, 5), y)
    data.targets = y
    return nc_benchmark(as_classification_dataset(data), as_classification_dataset(data), {}, task_labels=False)
"""


def save(file, classes):
    x, y = np.full((80, 5), float(classes)), np.arange(80) % classes
    np.savez(file, train_images=x, train_labels=y, test_images=x, test_labels=y)


@pytest.mark.parametrize("kind", ["npz", "features", "function"])
def test_data_are_read_again(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("ENGRAMS_DATA", str(tmp_path))
    (tmp_path / "features").mkdir()
    file = tmp_path / "features" / "mine.npz"
    name = {"npz": f"npz:{file}", "features": "features:mine", "function": f"{tmp_path}/mine.py:data"}[kind]
    for classes in (3, 4):
        save(file, classes)
        (tmp_path / "mine.py").write_text(FUNCTION.format(classes))
        assert sizes.of(Data(name)) == class_count(name) == load(name).classes == classes
        sizes.check([Data(name)], from_disk=False)
        assert (prepared(name, Images()).train_x == classes).all()
        assert load(name) is load(name), "else they are kept"


def test_what_a_function_reads_is_read_again_by_the_next_command(tmp_path):
    (tmp_path / "mine.py").write_text(READS.format(str(tmp_path / "y.npy")))
    data = Data(f"{tmp_path}/mine.py:data")
    for classes in (3, 4):
        np.save(tmp_path / "y.npy", np.arange(80) % classes)
        sizes.check([data], from_disk=False)
        assert sizes.of(data) == prepared(data.name, Images()).classes == classes


def test_what_is_dropped_leaves_memory(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTION.format(3))
    name = f"{tmp_path}/mine.py:data"
    sizes.check([Data(name)], from_disk=False)
    before = weakref.ref(load(name).train_x)
    sizes.check([Data(name)], from_disk=False)
    assert before() is None


def test_the_check_of_a_function_throws_no_other_data_away(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTION.format(3))
    save(tmp_path / "other.npz", 4)
    function, other = Data(f"{tmp_path}/mine.py:data"), f"npz:{tmp_path}/other.npz"
    before = load(other), prepared(other, Images())
    sizes.check([function], from_disk=False)
    assert load(other) is before[0]
    assert prepared(other, Images()) is before[1]


def test_a_benchmark_is_made_again(tmp_path):
    data = Data(f"{tmp_path}/mine.py:mine", "{}")
    for experiences in (2, 4):
        (tmp_path / "mine.py").write_text(BENCHMARK.format(experiences))
        assert sizes.of(data) == experiences
        sizes.check([data], from_disk=False)
        assert sizes.of(data) == experiences


def test_within_one_run_and_one_check_data_are_looked_at_once(tmp_path, monkeypatch):
    save(tmp_path / "mine.npz", 4)
    name, seen = f"npz:{tmp_path}/mine.npz", []
    look = names._fingerprint
    monkeypatch.setattr(names, "_fingerprint", lambda dataset: seen.append(dataset) or look(dataset))
    with names.settled():
        for _ in range(3):
            assert class_count(name) == sizes.of(Data(name)) == 4
    assert seen == [name]
    class_count(name)
    assert seen == [name] * 2


def test_however_many_runs_are_done_already_their_data_are_looked_at_once(tmp_path, monkeypatch):
    save(tmp_path / "mine.npz", 4)
    (tmp_path / "mine.toml").write_text(PROTOCOL.format(tmp_path / "mine.npz"))
    out = tmp_path / "runs"
    for run in plan(str(tmp_path / "mine.toml"), ["naive"], range(3)):
        execute(run, out, "cpu", "disabled", lambda epochs: None)
    seen = []
    look = names._fingerprint
    monkeypatch.setattr(names, "_fingerprint", lambda dataset: seen.append(dataset) or look(dataset))
    runs = plan(str(tmp_path / "mine.toml"), ["naive"], range(3))
    seen.clear()
    assert run_all(runs, out, DISABLED, Here(1), Display(Console(quiet=True)))
    assert len(seen) == 1
