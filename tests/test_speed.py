"""What is timed is what a strategy does."""

import pytest
import torch
from torch.nn import functional

from engrams.benchmarks import speed
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
