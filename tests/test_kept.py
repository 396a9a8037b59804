"""What plugins say they keep: a state is nobody's but whose it was asked for."""

import copy
import math
from functools import partial

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.training.plugins import GEMPlugin, SupervisedPlugin
from torch.utils._pytree import tree_leaves

from engrams.strategies import EWCPlugin, MASPlugin
from engrams.strategies.baselines import FrozenBackbonePlugin, L2Plugin, ReplayPlugin
from engrams.strategies.chaudhry2019 import ChaudhryEWCPlugin
from engrams.strategies.dark_replay import DERPlugin
from engrams.strategies.dgr import DeepGenerativeReplay
from engrams.strategies.experience_replay import ExperienceReplayPlugin
from engrams.strategies.generators import ClassGaussians, ImageSpec
from engrams.strategies.icarl import ICaRLPlugin
from engrams.strategies.kept import Unkept, restore, restore_within, state_of, state_within
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


@pytest.mark.filterwarnings("error:.*something else than the optimiser's steps")
@pytest.mark.parametrize("make", [lambda: ChaudhryEWCPlugin(1.0, every=2), lambda: SIPlugin(2.0, 0.01)])
def test_what_changes_within_an_experience_goes_on_from_its_middle(make):
    class Exchange(SupervisedPlugin):
        """Puts a plugin that was given the other's state in its place, once, after three steps."""

        def after_training_iteration(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 3 and strategy.clock.train_exp_counter == 1:
                fresh = make()
                fresh.load_state_dict(plugins[0].state_dict())
                fresh.before_training_exp(strategy)
                restore_within(fresh, state_within(plugins[0]))
                strategy.plugins[strategy.plugins.index(plugins[0])] = fresh
                plugins.append(fresh)

    found = []
    for more in ([], [Exchange()]):
        torch.manual_seed(1)
        plugins = [make()]
        learn(mlp(), stream([[0, 1]] * 3), plugins[0], *more)
        found.append(plugins[-1].importances)
    assert len(plugins) == 2
    for name, importance in found[0].items():
        assert torch.equal(importance, found[1][name])


PENALTIES = {
    "ewc": lambda: EWCPlugin(1.0),
    "mas": lambda: MASPlugin(1.0),
    "si": lambda: SIPlugin(1.0),
    "chaudhry2019-ewc": lambda: ChaudhryEWCPlugin(1.0, every=2),
}


def in_pieces(classes):
    """Three pieces of 10 samples an experience."""
    return list(split_online_stream(stream(classes, samples=30), experience_size=10, access_task_boundaries=True))


@pytest.mark.parametrize("kind", PENALTIES)
def test_no_state_is_given_away_that_lacks_pieces_already_learned(kind):
    plugin = PENALTIES[kind]()
    pieces = in_pieces([[0, 1]] * 2)
    strategy = learn(mlp(), pieces[:1], plugin)
    with pytest.raises(Unkept, match="waits for the end of an experience, and 10 samples of it are in no state"):
        plugin.state_dict()
    for piece in pieces[1:3]:
        strategy.train(piece)
    before = plugin.state_dict()
    assert before["consolidated"] == 1
    strategy.train(pieces[3])
    strategy.train(pieces[4])
    with pytest.raises(Unkept, match="20 samples"):
        plugin.state_dict()
    plugin.load_state_dict(before)
    assert same(plugin.state_dict(), before)


def test_no_state_is_given_away_that_lacks_samples_already_learned():
    plugin = EWCPlugin(1.0, consolidate_every=45)
    strategy = learn(mlp(), stream([[0, 1]], samples=30), plugin)
    with pytest.raises(Unkept, match="waits for the end of 45 samples, and 30 samples of it"):
        plugin.state_dict()
    strategy.train(stream([[0, 1]], samples=30)[0])
    assert plugin.state_dict()["consolidated"] == 1


@pytest.mark.parametrize("kind", PENALTIES)
def test_a_strategy_that_was_copied_between_two_pieces_goes_on_as_the_other(kind):
    pieces = in_pieces([[0, 1]] * 2)
    strategy = learn(mlp(), pieces[:4], PENALTIES[kind]())
    copied = copy.deepcopy(strategy)
    found = []
    for one in (strategy, copied):
        torch.manual_seed(1)
        for piece in pieces[4:]:
            one.train(piece)
        found.append(one.plugins[0].state_dict())
    assert found[0]["consolidated"] == 2
    assert same(*found)


MEMORIES = {
    "frozen": FrozenBackbonePlugin,
    "replay": lambda: ReplayPlugin(10),
    "er": lambda: ExperienceReplayPlugin(10),
    "er-past": lambda: ExperienceReplayPlugin(10, draws_from="past"),
    "der": lambda: DERPlugin(10, alpha=1.0, beta=1.0),
    "icarl": lambda: ICaRLPlugin(12),
}


@pytest.mark.parametrize("kind", ["frozen", "replay", "icarl"])
def test_no_memory_gives_a_state_away_that_lacks_pieces_already_learned(kind):
    plugin, pieces = MEMORIES[kind](), in_pieces([[0, 1], [2, 3]])
    strategy = learn(mlp(classes=4), pieces[:2], plugin)
    with pytest.raises(Unkept):
        plugin.state_dict()
    strategy.train(pieces[2])
    if kind != "icarl":  # whose exemplars of pieces are in no state at all
        plugin.state_dict()


def test_a_scholar_is_not_given_away_before_its_experience_has_ended():
    pieces = in_pieces([[0, 1], [2, 3]])
    scholar = partial(DeepGenerativeReplay, generator=ClassGaussians(ImageSpec((6,), -math.inf, math.inf), seed=0))
    strategy = learn(mlp(classes=4), pieces[:3], template=scholar)
    state = strategy.state_dict()
    kept = copy.deepcopy(state)
    strategy.train(pieces[3])
    with pytest.raises(Unkept, match=r"DeepGenerativeReplay waits for the end of an experience of which .* 1 pieces"):
        strategy.state_dict()
    for piece in pieces[4:]:
        strategy.train(piece)
    assert same(state, kept), "what the generator learned since is not in it"
    strategy.load_state_dict(state)
    assert strategy.generator.counts.tolist() == [15, 15]


TWO_AFTER_TWO = [[0, 1], [2, 3], [4, 5]]


def resumed(kind, how):
    """The network after three experiences, of which a new strategy has learned the last two; and the plugin."""
    torch.manual_seed(1)
    plugin, experiences = MEMORIES[kind](), stream(TWO_AFTER_TWO)
    strategy = learn(mlp(classes=6), experiences[:1], plugin)
    model = strategy.model
    if how == "state":
        state, plugin = plugin.state_dict(), MEMORIES[kind]()
        plugin.load_state_dict(state)
        model = copy.deepcopy(model)
    elif how == "copy":
        model, plugin = copy.deepcopy((model, plugin))
    torch.manual_seed(2)
    if how == "uninterrupted":
        for experience in experiences[1:]:
            strategy.train(experience)
    else:
        learn(model, experiences[1:], plugin)
    return list(model.state_dict().values()), plugin


@pytest.mark.filterwarnings("error:.*starts afresh")
@pytest.mark.parametrize("how", ["state", "copy", "the same model"])
@pytest.mark.parametrize("kind", MEMORIES)
def test_a_memory_goes_on_in_a_new_strategy(kind, how):
    expected, _ = resumed(kind, "uninterrupted")
    found, _ = resumed(kind, how)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("kind", MEMORIES)
def test_a_memory_starts_afresh_with_another_strategy_and_model(kind):
    plugin = MEMORIES[kind]()
    learn(mlp(classes=6), stream(TWO_AFTER_TWO), plugin)
    torch.manual_seed(2)
    with pytest.warns(UserWarning, match="was used with another strategy and another model: it starts afresh"):
        again = learn(mlp(classes=6), stream(TWO_AFTER_TWO), plugin).model
    torch.manual_seed(2)
    fresh = learn(mlp(classes=6), stream(TWO_AFTER_TWO), MEMORIES[kind]()).model
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), fresh.parameters(), strict=True))
