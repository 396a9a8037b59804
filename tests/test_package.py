"""What is installed: built as a wheel, and used from another folder."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
ROOMS = ("benchmarks", "strategies", "reports")
STRATEGY = '''"""A penalty on how far the outputs move from those of the last experience."""
import copy

import torch
from avalanche.training.plugins import SupervisedPlugin
from engrams.strategies import Hyperparameters, Strategy


class Settings(Hyperparameters):
    strength: float = 1.0


class KeepOutputs(SupervisedPlugin):
    def __init__(self, strength):
        super().__init__()
        self.strength, self.old = strength, None

    def before_backward(self, strategy, **kwargs):
        if self.old is not None:
            with torch.no_grad():
                old = self.old(strategy.mb_x)
            strategy.loss = strategy.loss + self.strength * (strategy.mb_output - old).square().mean()

    def after_training_exp(self, strategy, **kwargs):
        self.old = copy.deepcopy(strategy.model).eval()


keep = Strategy(summary="outputs are held", hyperparameters=Settings, plugin=lambda h: KeepOutputs(h.strength))
'''
PROTOCOL = """extends = "split-digits"
title = "my features"
dataset = "npz:mine.npz"
[stream]
scenarios = ["domain"]
[training]
epochs = 2
[strategies.avalanche-ewc]
ewc_lambda = 100.0
"""


def test_the_packages_that_are_named_are_the_folders():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        f"engrams.{file.parent.relative_to(ROOT)}".replace("/", ".")
        for room in ROOMS
        for file in (ROOT / room).rglob("__init__.py")
    }
    assert set(named) == folders


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A fresh environment with the wheel in it, on top of the present one's dependencies; its folder of programs."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # a copy: building leaves files behind
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *build], check=True, cwd=folder)
    (wheel,) = folder.glob("engrams-*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    install = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, cwd=folder)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    assert {one.name.partition("-")[0] for one in site.iterdir()} == {"engrams"}, "nothing else is put there"
    # Of the files that are read where a real installation lies, the one that Avalanche needs from Python 3.12 on.
    shim = "import importlib.util as u; u.find_spec('_distutils_hack') and __import__('_distutils_hack').add_shim()"
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{shim}\n")
    return folder / "env" / "bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A new user's: a strategy, a protocol and data of their own."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_strategy.py").write_text(STRATEGY)
    (folder / "mine.toml").write_text(PROTOCOL)
    rng = np.random.default_rng(0)
    means = 2 * rng.normal(size=(10, 12))
    labels = {part: np.repeat(np.arange(10), count) for part, count in (("train", 40), ("test", 10))}
    features = {part: means[y] + rng.normal(size=(len(y), 12)) for part, y in labels.items()}
    arrays = {f"{part}_images": x.astype(np.float32) for part, x in features.items()}
    np.savez(folder / "mine.npz", **arrays, **{f"{part}_labels": y for part, y in labels.items()})
    # Folders that many repositories have, which must not be taken for ours.
    for room in ROOMS:
        (folder / room).mkdir()
        (folder / room / "__init__.py").write_text("raise ImportError('not the one')")
    return folder


def engrams(installed, folder, *arguments):
    done = subprocess.run(
        [installed / "engrams", *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ones_own_stand_in_the_table_beside_ours_avalanches_and_joined_ones(installed, folder):
    """On vectors."""
    assert "split-digits/class" in engrams(installed, folder, "list")
    strategies = ["my_strategy.py:keep", "ewc", "avalanche-ewc", "naive", "replay", "ewc+replay"]
    settings = ["--seeds", 2, "--set", "ewc_lambda=10", "--wandb", "disabled"]
    shown = engrams(installed, folder, "run", "mine.toml", *strategies, *settings)
    for row in (
        "my_strategy:keep",
        "ewc ewc_lambda=10",
        "avalanche-ewc ewc_lambda=10",
        "naive",
        "replay",
        "ewc+replay",
    ):
        assert f" {row} " in shown
    table = engrams(installed, folder, "table", "runs", "--format", "csv")
    assert len(table.splitlines()) == 1 + len(strategies)
    assert "my_strategy:keep" in table
    assert "not run" in engrams(installed, folder, "parity", "runs")


def test_no_module_has_two_names(installed, folder):
    script = (
        "import sys, pkgutil, importlib, engrams.benchmarks, engrams.strategies, engrams.reports\n"
        "for room in (engrams.benchmarks, engrams.strategies, engrams.reports):\n"
        "    for found in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "        if not found.name.endswith('__main__'): importlib.import_module(found.name)\n"
        "files = {}\n"
        "for name, module in list(sys.modules.items()):\n"
        "    file = getattr(module, '__file__', None) or ''\n"
        "    if '/engrams/' in file: files.setdefault(file, set()).add(name)\n"
        "assert len(files) > 40\n"
        "assert all(len(names) == 1 for names in files.values()), files\n"
    )
    subprocess.run([installed / "python", "-c", script], cwd=folder, check=True)
