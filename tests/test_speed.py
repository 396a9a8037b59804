"""What is timed is what a strategy does."""

import pytest
import torch
from torch.nn import functional

from engrams.benchmarks import speed, speed_resnet
from engrams.strategies import EWCPlugin
from tests.test_ewc import mlp, stream


@pytest.mark.parametrize("consolidation", ["separate", "corrected"])
def test_a_step_is_timed_with_its_penalty(consolidation):
    model, plugin = mlp(), EWCPlugin(100.0, consolidation)
    for name, p in model.named_parameters():
        plugin.consolidate({name: torch.ones_like(p)}, {name: p.detach() + 1})
    experience = stream([[0, 1]])[0]
    x, y = torch.randn(4, 6), torch.arange(4) % 2
    speed.stepper(model, plugin, experience, x, y)()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (functional.cross_entropy(model(x), y) + plugin.penalty(model)).backward()
    assert plugin.penalty(model) > 0
    for gradient, p in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad)


def test_importances_are_timed_beside_an_epoch():
    rows = speed.resnet_importances(repeats=1, images=2)
    assert [row[0] for row in rows[1:]] == list(speed.GOALS)
    assert all(float(ratio.split()[0]) > 0 for _, _, ratio in rows[1:])


def test_a_pass_over_images_is_timed_beside_a_plain_loop_and_avalanche():
    rows = speed_resnet.one_pass(repeats=1, images=10)
    assert [row[0] for row in rows] == [
        f"{kind}: {name}"
        for kind in ("one pass", "with crops and flips", "with replay")
        for name in ("Avalanche as shipped", "a plain loop", "ours")
    ]
    assert [ratio for (name, _, ratio) in rows if name.endswith("plain loop")] == ["1.00 x"] * 3
    assert all(float(ratio.split()[0]) > 0 for *_, ratio in rows)
