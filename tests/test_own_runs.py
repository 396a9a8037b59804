"""Runs on data and networks of one's own, from a protocol file to the record."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engrams.benchmarks.data import datasets, streams
from engrams.benchmarks.data.loading import tensors_of
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import plan, run_of
from engrams.benchmarks.jobs.suite import SuiteError, finished
from engrams.benchmarks.judging import vectors
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.training.build import benchmark_of, make_strategy
from engrams.reports import store
from engrams.reports.pages import class_shares
from tests.test_runs import engrams

PROTOCOL = """
title = "Features of another network"
dataset = "npz:features.npz"

[images]
standardise = "first-experience"

[stream]
kind = "split"
scenarios = ["task", "domain", "class"]
classes_per_experience = 2
class_order = "seeded"
validation_fraction = 0.2

[network]
hidden_size = 32
hidden_layers = 1

[training]
optimizer = "adam"
learning_rate = 1e-2
batch_size = 20
epochs = 3
schedule = "constant"
reset_optimizer = true

[strategies.ewc]
ewc_lambda = 10.0
[strategies.mas]
mas_lambda = 1.0
[strategies.replay]
mem_size = 60
[strategies.avalanche-gem]
patterns_per_exp = 20
memory_strength = 0.5
[strategies.avalanche-lwf]
alpha = 1.0
temperature = 2.0
"""
PERMUTED = PROTOCOL.replace('"split"', '"permuted"').replace(
    'scenarios = ["task", "domain", "class"]\nclasses_per_experience = 2\nclass_order = "seeded"', "experiences = 3"
)
NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.LazyLinear(32), nn.ReLU())
        self.classifier = nn.Linear(32, classes)

    def forward(self, x):
        return self.classifier(self.hidden(x))
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with features of six classes, and protocols and a network that name each other by relative paths."""
    rng = np.random.default_rng(0)
    y = np.arange(360) % 6
    x = 5 + 3 * rng.normal(size=(6, 12))[y] + rng.normal(size=(360, 12))
    columns = {"train_images": x[:300], "train_labels": y[:300], "test_images": x[300:], "test_labels": y[300:]}
    (tmp_path / "mine").mkdir()
    np.savez(tmp_path / "mine" / "features.npz", **columns)
    (tmp_path / "mine" / "features.toml").write_text(PROTOCOL)
    (tmp_path / "mine" / "permuted.toml").write_text(PERMUTED)
    (tmp_path / "mine" / "net.py").write_text(NETWORK)
    (tmp_path / "mine" / "own-net.toml").write_text(
        'extends = "features.toml"\n[network]\nkind = "net.py:Net"\n[stream]\nscenarios = ["class"]\n'
    )
    datasets.load.cache_clear()
    streams.prepared.cache_clear()
    vectors.linear_classifier.cache_clear()
    return tmp_path / "mine"


def record_of(protocol, strategy, out, **settings):
    run = run_of(registry.get(str(protocol)), strategy, 0, settings)
    return execute(run, out, "cpu", "disabled", lambda epochs: None)


def test_a_record_names_the_code_that_was_learned_and_not_what_became_of_it_meanwhile(folder, tmp_path):
    run, same = (run_of(registry.get(str(folder / "own-net.toml")), "naive") for _ in range(2))
    learned = same.deciding()["network"]["fingerprint"]
    net = folder / "net.py"
    record = execute(run, tmp_path / "runs", "cpu", "disabled", lambda epochs: net.write_text(NETWORK + "# mended\n"))
    assert record.complete, record.reason
    assert record.hyperparameters["network"]["fingerprint"] == learned
    assert run_of(registry.get(str(folder / "own-net.toml")), "naive").deciding()["network"]["fingerprint"] != learned


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize(
    "strategy",
    ["naive", "joint", "ewc", "mas", "replay", "exact-replay", "noise-replay", "avalanche-gem", "avalanche-lwf"],
)
def test_vectors_are_learned(folder, tmp_path, strategy, scenario):
    record = record_of(folder / f"features.toml/{scenario}", strategy, tmp_path / "runs")
    assert record.complete, record.reason
    best_of_first = record.accuracy_matrix[0][0]
    assert best_of_first > (0.9 if strategy != "joint" else 0)
    if strategy in ("joint", "replay", "exact-replay"):
        assert record.acc > 0.9
    assert (record.generated is not None) == (strategy in ("exact-replay", "noise-replay"))


def test_a_record_says_what_a_generator_of_vectors_remembers(folder, tmp_path):
    found = {}
    for strategy in ("exact-replay", "dgr-gaussian", "noise-replay"):
        generated = record_of(folder / "features.toml/class", strategy, tmp_path / "runs").generated
        assert np.array(generated.class_shares).shape == (3, 6)
        assert np.sum(generated.class_shares, axis=1) == pytest.approx([1, 1, 1])
        assert generated.classifier_accuracy > 0.95
        found[strategy] = generated
    for strategy in ("exact-replay", "dgr-gaussian"):
        assert [np.count_nonzero(shares) for shares in found[strategy].class_shares] == [2, 4, 6]
        assert found[strategy].class_shares[-1] == pytest.approx([1 / 6] * 6, abs=0.03)
        assert found[strategy].spread == pytest.approx([1, 1, 1], abs=0.1)
    assert found["noise-replay"].spread[-1] != pytest.approx(1, abs=0.2)
    (row,) = class_shares.compare(record for record in store.read_all(tmp_path / "runs") if "gauss" in record.strategy)
    assert row.spread == found["dgr-gaussian"].spread[-1]


def test_spread_is_relative_to_the_classes_so_far_as_the_stream_has_them(folder, tmp_path, monkeypatch):
    run = run_of(registry.get(str(folder / "features.toml/class")), "exact-replay", 0, {})
    observer = vectors.VectorObserver(run, run.protocol.stream)
    benchmark = benchmark_of(run)
    for count in (1, 2):
        x = torch.cat([tensors_of(one.dataset)[0] for one in benchmark.train_stream[:count]])
        monkeypatch.setattr(vectors, "sampler", lambda strategy, x=x: lambda n: 0.5 * x)
        observer.after_experience(None, [], {})
        monkeypatch.setattr(vectors, "sampler", lambda strategy, x=x: lambda n: x)
        same = vectors.VectorObserver(run, run.protocol.stream)
        same.spread, same.class_shares = observer.spread[:-1], observer.class_shares[:-1]
        same.after_experience(None, [], seen := {})
        assert same.spread[-1] == pytest.approx(1)
        learned = [label for one in observer.experiences[:count] for label in one]
        expected = [1 / len(learned) if label in learned else 0 for label in range(6)]
        assert seen["class_shares"] == pytest.approx(expected, abs=0.02)
    assert observer.spread == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize("strategy", ["ewc", "replay", "exact-replay"])
def test_permuted_vectors_are_learned(folder, tmp_path, strategy):
    record = record_of(folder / "permuted.toml", strategy, tmp_path / "runs")
    assert record.complete, record.reason
    assert np.array(record.accuracy_matrix).shape == (3, 3)
    assert np.diag(record.accuracy_matrix).min() > 0.9


@pytest.mark.parametrize(
    ("old", "new", "strategy", "reason"),
    [
        ("hidden_size = 32\nhidden_layers = 1", 'kind = "resnet18-reduced"\nwidth = 2', "naive", "needs images"),
        ("batch_size", "horizontal_flips = true\nbatch_size", "naive", "training.horizontal_flips is for images"),
        (
            'standardise = "first-experience"',
            "mean = [0.1, 0.2]",
            "naive",
            "images.pad and a mean or std for each channel are for images, but npz:.*features.npz has vectors",
        ),
        ("epochs = 3", "epochs = 1", "avalanche-generative-replay", "Avalanche's VAE makes values between two bounds"),
    ],
)
def test_what_vectors_cannot_have_is_said_in_one_line(folder, tmp_path, old, new, strategy, reason):
    (folder / "other.toml").write_text(PROTOCOL.replace(old, new, 1))
    settings = {"epochs": 1, "batch_size": 20, "replay_size": 8, "latent_size": 2} if "avalanche" in strategy else {}
    record = record_of(folder / "other.toml/class", strategy, tmp_path / "runs", **settings)
    assert not record.complete
    assert "\n" not in record.reason
    assert re.search(reason, record.reason)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_a_reduced_resnet_learns_with_penalties_and_replay(folder, tmp_path, scenario):
    """Batch norm, one head and several; the class of an image is where it is bright."""
    rng = np.random.default_rng(1)
    y = np.arange(120) % 6
    x = rng.uniform(0, 0.2, (120, 12, 12))
    for image, label in zip(x, y, strict=True):
        image[2 * label : 2 * label + 2] += 0.8
    np.savez(folder / "images.npz", x_train=x, y_train=y, x_test=x[:60], y_test=y[:60])
    text = PROTOCOL.replace("features.npz", "images.npz").replace('standardise = "first-experience"', "")
    text = text.replace("hidden_size = 32\nhidden_layers = 1", 'kind = "resnet18-reduced"\nwidth = 4')
    (folder / "bright.toml").write_text(
        text.replace("batch_size = 20", "batch_size = 8").replace("epochs = 3", "epochs = 6")
    )
    for strategy in ("ewc", "replay"):
        record = record_of(folder / f"bright.toml/{scenario}", strategy, tmp_path / "runs")
        assert record.complete, record.reason
        assert record.accuracy_matrix[0][0] > 0.8


# --- the command line -------------------------------------------------------------------------------------------------


def test_one_command_from_a_file_to_the_record(folder, tmp_path, monkeypatch):
    """From another folder: every path is relative to the file that it stands in."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(place).absolute()) for place in sys.path if place))
    monkeypatch.chdir(tmp_path)
    done = engrams("run", "mine/own-net.toml", "naive", "ewc", "--seeds", 1, "--wandb", "disabled")
    assert done.returncode == 0, done.stdout + done.stderr
    raw = json.loads((tmp_path / "runs" / "own-net" / "ewc" / "0" / "record.json").read_text())
    assert raw["status"] == "complete"
    settings = raw["hyperparameters"]
    assert settings["dataset"] == "npz:features.npz", "wherever it lies"
    assert len(settings["dataset_fingerprint"]) == 12
    assert settings["network"].keys() == {"kind", "fingerprint"}
    assert settings["network"]["kind"] == "net.py:Net"
    assert settings["images"] == {"pad": 0, "standardise": "first-experience"}
    assert registry.get("mine/own-net.toml").deciding(run_of_naive().strategy).items() <= settings.items()

    shutil.move(folder, tmp_path / "moved")
    again = engrams("run", "moved/own-net.toml", "naive", "ewc", "--seeds", 1, "--wandb", "disabled")
    assert again.returncode == 0, again.stdout + again.stderr

    net = tmp_path / "moved" / "net.py"
    net.write_text(NETWORK.replace("32", "48"))
    changed = engrams("run", "moved/own-net.toml", "ewc", "--seeds", 1, "--wandb", "disabled")
    assert changed.returncode == 2
    assert "was made with other settings (network.fingerprint was" in changed.stderr
    net.write_text(NETWORK)
    features = dict(np.load(tmp_path / "moved" / "features.npz"))
    features["train_images"] += 1e-6
    np.savez(tmp_path / "moved" / "features.npz", **features)
    changed = engrams("run", "moved/own-net.toml", "ewc", "--seeds", 1, "--wandb", "disabled")
    assert changed.returncode == 2
    assert "was made with other settings (dataset_fingerprint was" in changed.stderr


def test_features_that_were_made_anew_are_other_data(folder, tmp_path, monkeypatch):
    """A record that does not say of which features it is, as of before that was kept, is believed."""
    monkeypatch.setenv("ENGRAMS_DATA", str(tmp_path / "data"))
    made = tmp_path / "data" / "features" / "made.npz"
    made.parent.mkdir(parents=True)

    def run():
        return run_of(registry.get(str(folder / "features.toml/class"), {"dataset": "features:made"}), "naive")

    shutil.copy(folder / "features.npz", made)
    record = execute(run(), tmp_path / "out", "cpu", "disabled", lambda epochs: None)
    assert finished(run(), tmp_path / "out").acc == record.acc
    del record.hyperparameters["dataset_fingerprint"]
    store.write(record, run().folder(tmp_path / "older"))
    features = dict(np.load(made))
    features["train_images"] += 1e-6
    np.savez(made, **features)
    with pytest.raises(SuiteError, match=r"was made with other settings \(dataset_fingerprint was "):
        finished(run(), tmp_path / "out")
    assert finished(run(), tmp_path / "older").acc == record.acc
    made.unlink()
    assert finished(run(), tmp_path / "out").acc == record.acc, "nobody knows where there are none"


STRATEGY = """
from avalanche.training.plugins import ReplayPlugin
from engrams.strategies import Strategy

replay = Strategy(plugin=lambda h: ReplayPlugin(mem_size=20))
"""


def test_runs_of_ones_own_are_done_again_where_their_files_are(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(place).absolute()) for place in sys.path if place))
    monkeypatch.chdir(folder)
    (folder / "mine.py").write_text(STRATEGY)
    for protocol in ("own-net.toml", "features.toml/class"):
        done = engrams(
            "run", protocol, "mine.py:replay", "--set", "training.epochs=1", "--seeds", 1, "--wandb", "disabled"
        )
        assert done.returncode == 0, done.stdout + done.stderr
    again = engrams("verify", "runs", "--rerun", 2)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("equal to the bit") == 2
    monkeypatch.chdir(folder.parent)
    elsewhere = engrams("verify", "mine/runs", "--rerun", 2)
    assert elsewhere.returncode == 1
    assert elsewhere.stdout.count("cannot be done again here") == 2


def run_of_naive():
    return run_of(registry.get("split-digits/class"), "naive", 0)


def test_data_that_are_missing_or_wrong_are_one_line_before_anything_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for dataset, message in (
        ("npz:absent.npz", f"{folder}/absent.npz: there is no such file"),
        ("absent.py:f", f"there is no file {folder}/absent.py"),
        ("absent_module:f", "there is no module 'absent_module'"),
        ("mnits", "no data set is called 'mnits'; did you mean 'mnist'?"),
        (":f", "dataset: ':f' names no function or class"),
    ):
        done = engrams("run", "features.toml/class", "naive", "--set", f"dataset={dataset}", "--wandb", "disabled")
        assert done.returncode == 2
        assert message in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stdout + done.stderr
        assert not (folder / "runs").exists()


def test_a_protocol_that_is_printed_can_be_read_again(folder, tmp_path, monkeypatch):
    printed = engrams("protocol", folder / "features.toml/class")
    assert printed.returncode == 0, printed.stderr
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "again.toml").write_text(printed.stdout)
    again, first = (
        registry.get(str(tmp_path / "elsewhere" / "again.toml")),
        registry.get(f"{folder}/features.toml/class"),
    )
    naive = run_of_naive().strategy
    assert again.deciding(naive) == first.deciding(naive)


def test_a_network_that_names_no_function_is_refused_with_its_file(folder):
    (folder / "bad.toml").write_text('extends = "features.toml"\n[network]\nkind = "net.py:"\n')
    with pytest.raises(ProtocolError, match=r"bad.toml: network.kind: 'net.py:' names no function or class"):
        registry.get(str(folder / "bad.toml"))


SEEDED = """
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

def Net(shape, classes):
    torch.manual_seed(42)
    return Forked(shape, classes)

def Forked(shape, classes):
    with torch.random.fork_rng():
        torch.manual_seed(42)
        module = nn.Sequential(nn.Flatten())
        module.add_module("classifier", nn.Linear(64, classes))
    return module

class Plugin(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        torch.manual_seed(42)
"""


@pytest.mark.parametrize(
    ("strategy", "network", "who"),
    [("naive", "Net", "the network"), ("{}:Plugin", "Forked", "mine:Plugin"), ("naive", "Forked", None)],
)
def test_code_of_ones_own_that_sets_a_seed_is_refused(tmp_path, strategy, network, who):
    """All seeds would begin with the same weights, or go on with the same minibatches."""
    (tmp_path / "mine.py").write_text(SEEDED)
    file = tmp_path / "mine.py"
    run = plan("split-digits/class", [strategy.format(file)], [0], {"network.kind": f"{file}:{network}"})[0]
    benchmark = benchmark_of(run)
    torch.manual_seed(7)
    if who is None:
        make_strategy(run, benchmark, "cpu", [])
        assert torch.initial_seed() == 7
    else:
        with pytest.raises(ProtocolError, match=rf"split-digits/class: {who} sets a seed .*torch.random.fork_rng\(\)"):
            make_strategy(run, benchmark, "cpu", [])
