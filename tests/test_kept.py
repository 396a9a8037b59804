"""What plugins say they keep: a state is nobody's but whose it was asked for."""

import copy

import pytest
import torch
from avalanche.training.plugins import GEMPlugin
from torch.utils._pytree import tree_leaves

from engrams.strategies import EWCPlugin, MASPlugin
from engrams.strategies.baselines import FrozenBackbonePlugin, L2Plugin, ReplayPlugin
from engrams.strategies.dark_replay import DERPlugin
from engrams.strategies.experience_replay import ExperienceReplayPlugin
from engrams.strategies.kept import restore, state_of
from engrams.strategies.si import SIPlugin
from tests.test_ewc import learn, mlp, stream

KEEPING = {
    "ewc": lambda: EWCPlugin(1.0),
    "ewc-separate": lambda: EWCPlugin(1.0, "separate"),
    "ewc-online": lambda: EWCPlugin(1.0, "online", gamma=0.5),
    "mas": lambda: MASPlugin(1.0),
    "l2": lambda: L2Plugin(1.0),
    "si": lambda: SIPlugin(1.0),
    "frozen": FrozenBackbonePlugin,
    "replay": lambda: ReplayPlugin(10),
    "er": lambda: ExperienceReplayPlugin(10, draws_from="past"),
    "der": lambda: DERPlugin(10, alpha=1.0, beta=1.0),
    "avalanche-gem": lambda: GEMPlugin(10, 0.5),
}


def same(state, other):
    found = [tree_leaves(one) for one in (state, other)]
    return len(found[0]) == len(found[1]) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*found, strict=True)
    )


@pytest.mark.parametrize("kind", KEEPING)
def test_a_state_stays_as_it_is_whoever_goes_on_from_it(kind):
    """The plugin that it was asked of, and one of two that it was loaded into: the other has what was loaded."""
    experiences = stream([[0, 1]] * 3)
    plugin = KEEPING[kind]()
    strategy = learn(mlp(), experiences[:1], plugin)
    state = state_of(plugin)
    before = copy.deepcopy(state)
    strategy.train(experiences[1])
    assert same(state, before)
    goes_on, waits = KEEPING[kind](), KEEPING[kind]()
    for one in (goes_on, waits):
        restore(one, state)
    strategy.plugins[strategy.plugins.index(plugin)] = goes_on
    strategy.clock.train_exp_counter = 1
    strategy.train(experiences[2])
    assert same(state, before)
    assert same(state_of(waits), before)
    assert kind == "frozen" or not same(state_of(goes_on), before)


@pytest.mark.parametrize("kind", [kind for kind in KEEPING if kind != "frozen"])
def test_tensors_of_a_state_are_copies(kind):
    plugin = KEEPING[kind]()
    learn(mlp(), stream([[0, 1]]), plugin)
    state = state_of(plugin)
    before = copy.deepcopy(state)
    loaded = KEEPING[kind]()
    restore(loaded, state)
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    assert tensors
    for tensor in tensors:
        tensor.zero_()
    assert same(state_of(plugin), before)
    assert same(state_of(loaded), before)
