"""Avalanche's own generative replay, fitted to a stream: what it was told is what it has."""

import math

import pytest
import torch
from torch import nn

from engrams.benchmarks.protocols import registry as protocol
from engrams.strategies import catalogue
from engrams.strategies.generators import ImageSpec
from tests.test_dark_replay import stream_of
from tests.test_ewc import quiet

SETTINGS = {
    "epochs": 3,
    "vae_epochs": 7,
    "batch_size": 11,
    "replay_size": 13,
    "latent_size": 5,
    "hidden_sizes": (17, 19, 23),
    "generator_learning_rate": 0.02,
    "generator_weight_decay": 0.03,
}
LOW, HIGH = -0.5, 2.5
IMAGES = ImageSpec((1, 8, 8), LOW, HIGH)


def built(images=IMAGES, **settings):
    entry = catalogue.get("avalanche-generative-replay-large")
    h = protocol.get("split-digits/class").hyperparameters_of(entry, SETTINGS | settings)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    template = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 128,
        "train_epochs": 1,
        "eval_mb_size": 100,
        "device": torch.device("cpu"),
        "evaluator": quiet(),
        "images": images,
        "seed": 0,
    }
    return entry.make(h, template)


def sizes(network):
    return [(layer.in_features, layer.out_features) for layer in network.modules() if isinstance(layer, nn.Linear)]


def test_every_setting_arrives():
    solver = built()
    generator = solver.generator_strategy
    assert (solver.train_epochs, generator.train_epochs) == (3, 7)
    assert (solver.train_mb_size, generator.train_mb_size) == (11, 11)
    assert [plugin.replay_size for one in (solver, generator) for plugin in one.plugins if replays(plugin)] == [13, 13]
    vae = generator.model
    assert sizes(vae.encoder) == [(64, 17), (17, 19), (19, 23)]
    assert sizes(vae.calc_mean) == sizes(vae.calc_logvar) == [(23, 5)]
    assert sizes(vae.decoder) == [(5, 23), (23, 19), (19, 17), (17, 64)]
    [group] = generator.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.03)
    assert {id(p) for p in group["params"]} == {id(p) for p in vae.parameters()}


def replays(plugin):
    return hasattr(plugin, "replay_size")


def test_as_released_the_generator_has_the_solver_s_epochs_and_its_own_layers():
    generator = built(vae_epochs=None, hidden_sizes=()).generator_strategy
    assert generator.train_epochs == 3
    assert sizes(generator.model.encoder)[0] == (64, 400), "Avalanche's own"


def test_what_it_makes_lies_in_the_range_of_the_stream():
    vae = built().generator_strategy.model
    with torch.no_grad():
        for layer in vae.decoder.modules():
            if isinstance(layer, nn.Linear):
                layer.weight *= 100
        made = vae.generate(200)
    assert made.shape == (200, 1, 8, 8)
    assert LOW <= made.min() < LOW + 0.01
    assert HIGH - 0.01 < made.max() <= HIGH


def test_bounds_of_another_type_are_of_the_solvers():
    low, high = (torch.full((1, 1, 1), bound, dtype=torch.float64) for bound in (LOW, HIGH))
    made = built(ImageSpec((1, 8, 8), low, high)).generator_strategy.model.generate(3)
    assert made.dtype == torch.float32


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (-math.inf, 0.0), (-math.inf, math.inf)])
def test_without_two_bounds_it_is_refused(low, high):
    with pytest.raises(ValueError, match=r"between two bounds, and these inputs .* have none; dgr-vae learns them"):
        built(ImageSpec((1, 8, 8), low, high))


def test_its_generator_learns_in_silence(capsys, recwarn):
    solver = built(vae_epochs=1)
    solver.generator_strategy.train(stream_of((torch.zeros(22, 1, 8, 8), torch.zeros(22, dtype=torch.long)))[0])
    assert capsys.readouterr() == ("", "")
    assert not recwarn.list
