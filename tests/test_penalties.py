"""What surrounds the penalties: whose anchors they are, where an experience ends, what is refused, and the options."""

import copy
import pickle
import re
import warnings
from collections import UserDict
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.models import IncrementalClassifier, MultiTaskModule, as_multitask
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from engrams.strategies import EWCPlugin, MASPlugin, per_sample_gradients
from engrams.strategies.baselines import L2Plugin
from engrams.strategies.importance import diagonal_fisher, mas_importance
from engrams.strategies.quadratic_penalty import QuadraticPenaltyPlugin
from engrams.strategies.si import SIPlugin
from tests.test_ewc import joint_least_squares, learn, mlp, quiet, stream

PLUGINS = {
    "ewc": lambda **options: EWCPlugin(1.0, **options),
    "ewc-separate": lambda **options: EWCPlugin(1.0, "separate", **options),
    "mas": lambda **options: MASPlugin(1.0, **options),
    "l2": lambda **options: L2Plugin(1.0, **options),
    "si": lambda **options: SIPlugin(1.0, **options),
}


def online(size, experiences=2):
    """Sub-experiences of experiences of 40 samples; Avalanche's own data sets."""
    torch.manual_seed(0)
    sets = [make_avalanche_dataset(TensorDataset(torch.randn(40, 6), torch.arange(40) % 2)) for _ in range(experiences)]
    return split_online_stream(benchmark_from_datasets(train=sets).train_stream, experience_size=size)


class Net(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.body, self.fc = nn.Linear(6, 5), nn.Linear(5, classes)

    def forward(self, x):
        return self.fc(self.body(x).relu())


def anchors_of(plugin):
    return plugin.anchors[-1] if plugin.consolidation == "separate" else plugin.anchors


# --- whose anchors they are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLUGINS)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_fresh_head_is_not_pulled_to_the_old_one_whatever_its_size(kind, classes):
    plugin, experiences = PLUGINS[kind](), stream([[0, 1, 2], [0, 1]])
    strategy = learn(Net(3), [experiences[0]], plugin)
    strategy.model.fc = nn.Linear(5, classes)
    said = r"Plugin: 'fc.weight', 'fc.bias': exchanged for .*, which is not penalised \(earlier .*: load_state_dict\)$"
    with pytest.warns(UserWarning, match=said):
        plugin.before_training_exp(at_the_start_of(strategy, experiences[1]))
    with torch.no_grad():
        strategy.model.fc.weight.add_(3.0)
    assert plugin.penalty(strategy.model).item() == 0
    with torch.no_grad():
        strategy.model.body.weight.add_(3.0)
    assert plugin.penalty(strategy.model).item() > 0
    strategy.train(experiences[1])
    assert anchors_of(plugin)["fc.weight"].shape == (classes, 5)
    if kind == "ewc":  # nothing is left of the old one
        expected = diagonal_fisher(strategy.model, experiences[1].dataset)
        torch.testing.assert_close(plugin.importances["fc.weight"], expected["fc.weight"])


def warned_of(what, plugins):
    """Returns the warnings with these words, of two experiences under some plugins."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn(Net(), stream([[0, 1]] * 2), *plugins)
    return [str(w.message) for w in caught if what in str(w.message)]


def at_the_start_of(strategy, experience):
    """The strategy as it is at the start of an experience."""
    strategy.experience = experience
    return strategy


@pytest.mark.parametrize("kind", PLUGINS)
@pytest.mark.parametrize("loaded", [False, True])
def test_what_begins_with_other_values_than_it_is_held_to_is_named_and_may_be_forgotten(kind, loaded):
    """A head that was initialised afresh in place, or put into a network whose plugin was loaded."""
    plugin, experiences = PLUGINS[kind](), stream([[0, 1]] * 2)
    strategy = learn(Net(), experiences[:1], plugin)
    with torch.no_grad():
        strategy.model.fc.bias[0] -= 0.75
    if loaded:
        state, plugin = plugin.state_dict(), PLUGINS[kind]()
        plugin.load_state_dict(state)
    kept = copy.deepcopy(plugin.state_dict())
    with pytest.warns(UserWarning, match=r"1 of 4 parameters \('fc.bias'\) do not begin .* difference: 0.75\); they"):
        plugin.before_training_exp(at_the_start_of(strategy, experiences[1]))
    assert plugin.penalty(strategy.model) > 0
    plugin.load_state_dict(kept)
    for of_name in plugin.importances if kind == "ewc-separate" else [plugin.importances]:
        del of_name["fc.bias"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(do not begin|exchanged|afresh)")
        plugin.before_training_exp(at_the_start_of(strategy, experiences[1]))
    assert plugin.penalty(strategy.model) == 0


class Fourier(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter, self.fc = nn.Parameter(torch.ones(4, dtype=torch.cfloat)), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=6))


@pytest.mark.parametrize("kind", PLUGINS)
def test_complex_parameters_are_refused_before_training_unless_they_are_left_out(kind):
    plugin, model, experiences = PLUGINS[kind](), Fourier(), stream([[0, 1]] * 2)
    before = model.fc.weight.detach().clone()
    with pytest.raises(ValueError, match=f"{type(plugin).__name__} cannot work here, .* 'filter' is complex"):
        learn(model, experiences, plugin)
    assert torch.equal(model.fc.weight, before)
    plugin = PLUGINS[kind]()
    plugin.exclude = ["filter"]
    learn(model, experiences, plugin)
    assert anchors_of(plugin).keys() == {"fc.weight", "fc.bias"}
    assert model.filter.requires_grad


@pytest.mark.parametrize("place", [0, 1])
def test_a_criterion_that_a_plugin_puts_in_place_of_the_strategys_is_told_of(place):
    class Another(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            self.criterion, strategy._criterion = strategy._criterion, functional.cross_entropy

        def before_backward(self, strategy, **kwargs):
            strategy._criterion = self.criterion

    (said,) = warned_of("Fisher", [EWCPlugin(1.0), Another()][:: 1 - 2 * place])
    assert said.startswith("EWCPlugin: the loss is not the strategy's criterion (CrossEntropyLoss): a plugin puts")


@pytest.mark.parametrize("place", [0, 1])
def test_what_a_plugin_initialises_afresh_is_named_once_wherever_it_stands(place):
    class Afresh(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            strategy.model.fc.reset_parameters()

    (said,) = warned_of("do not begin", [EWCPlugin(1.0), Afresh()][:: 1 - 2 * place])
    assert said.startswith("EWCPlugin: 2 of 4 parameters ('fc.weight', 'fc.bias')")


def test_the_best_epochs_weights_are_told_of_whether_they_are_loaded_or_another_network():
    """In place they are held to what the experience ended with; a copy with other values is taken for a fresh one."""
    experiences = stream([[0, 1]] * 2)
    for copied, message in ((False, "4 of 4 parameters .* do not begin"), (True, "exchanged .* load_state_dict")):
        plugin, model = EWCPlugin(1.0), Net()
        earlier = copy.deepcopy(model)
        strategy = learn(model, experiences[:1], plugin)
        if copied:
            strategy.model = earlier
        else:
            model.load_state_dict(earlier.state_dict())
        with pytest.warns(UserWarning, match=message):
            plugin.before_training_exp(at_the_start_of(strategy, experiences[1]))
        assert len(plugin._terms) == (0 if copied else 4)


def test_the_pieces_of_an_experience_begin_as_they_like():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*do not begin")
        learn(Net(), online(8), EWCPlugin(1.0), EWCPlugin(1.0, consolidate_every=20))


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_parameter_that_is_gone_is_named(kind):
    plugin, experiences = PLUGINS[kind](), stream([[0, 1]] * 2)
    strategy = learn(Net(), [experiences[0]], plugin)
    strategy.model.fc2 = nn.Linear(5, 2)
    del strategy.model.fc
    strategy.model.forward = lambda x: strategy.model.fc2(strategy.model.body(x).relu())
    with pytest.warns(UserWarning, match="Plugin: 'fc.weight', 'fc.bias': not in the model any more"):
        strategy.train(experiences[1])
    assert "fc2.weight" in anchors_of(plugin)
    if kind != "ewc-separate":
        assert plugin.importances.keys() == dict(strategy.model.named_parameters()).keys()


def test_what_is_left_out_may_be_gone_later():
    plugin, experiences = EWCPlugin(1.0, exclude="fc.*"), stream([[0, 1]] * 2)
    strategy = learn(Net(), [experiences[0]], plugin)
    del strategy.model.fc
    strategy.model.head = nn.Linear(5, 2)
    strategy.model.forward = lambda x: strategy.model.head(strategy.model.body(x).relu())
    strategy.train(experiences[1])
    assert plugin.anchors.keys() == {"body.weight", "body.bias", "head.weight", "head.bias"}


def test_before_anything_is_learned_there_is_no_penalty():
    for make in PLUGINS.values():
        assert make().penalty(Net()).item() == 0


def test_the_penalty_of_another_model_goes_by_the_names_of_its_parameters():
    plugin, experiences = EWCPlugin(3.0), stream([[0, 1]])
    model = learn(Net(), experiences, plugin).model
    other = Net()
    expected = sum(
        (plugin.importances[name] * (p - plugin.anchors[name]) ** 2).sum() for name, p in other.named_parameters()
    )
    assert plugin.penalty(other).item() == pytest.approx(1.5 * expected.item(), rel=1e-5)
    with torch.no_grad():
        model.body.bias += 1
    model.fc = nn.Linear(5, 2)  # of its own model what was exchanged is left out
    expected = plugin.importances["body.bias"].sum()
    assert plugin.penalty(model).item() == pytest.approx(1.5 * expected.item(), rel=1e-5)


def test_the_penalty_of_another_model_counts_every_layer_and_changes_nothing():
    """Whether it has some of its values in common with the model that the anchors belong to, or none."""
    plugin, experiences = EWCPlugin(2.0), stream([[0, 1]] * 2)
    strategy = learn(Net(), [experiences[0]], plugin)
    other = copy.deepcopy(strategy.model)
    assert plugin.penalty(other) == 0
    with torch.no_grad():
        other.fc.bias += 1.0
    expected = plugin.importances["fc.bias"].sum()
    torch.testing.assert_close(plugin.penalty(other).detach(), expected)
    with torch.no_grad():
        strategy.model.body.bias += 1.0
    with pytest.warns(UserWarning, match="1 of 4 parameters .*'body.bias'.*do not begin this experience"):
        strategy.train(experiences[1])
    assert (plugin.importances["fc.bias"].sum() > expected).all(), "both experiences'"
    del other.fc
    with pytest.raises(ValueError, match=r"the model has no parameter 'fc\.weight', of which there is an anchor"):
        plugin.penalty(other)


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_layer_that_takes_a_removed_ones_name_keeps_its_own_anchors(kind):
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)])

        def forward(self, x):
            for layer in self.layers[:-1]:
                x = layer(x).relu()
            return self.layers[-1](x)

    plugin, experiences = PLUGINS[kind](), stream([[0, 1]] * 2)
    strategy = learn(Layers(), [experiences[0]], plugin)
    anchors = {name: anchor.clone() for name, anchor in anchors_of(plugin).items()}
    strategy.model.layers = nn.ModuleList(list(strategy.model.layers)[1:])
    with pytest.warns(UserWarning, match="'layers.0.weight', 'layers.0.bias': not in the model any more"):
        plugin.before_training_exp(at_the_start_of(strategy, experiences[1]))
    for place in (0, 1):
        for of in ("weight", "bias"):
            assert torch.equal(anchors_of(plugin)[f"layers.{place}.{of}"], anchors[f"layers.{place + 1}.{of}"])
    assert len(anchors_of(plugin)) == len(plugin._terms) == 4


def test_a_layer_that_is_reparametrised_is_named():
    plugin, experiences = EWCPlugin(1.0), stream([[0, 1]] * 2)
    strategy = learn(Net(), [experiences[0]], plugin)
    nn.utils.parametrizations.weight_norm(strategy.model.fc)
    with pytest.warns(UserWarning, match="'fc.weight': not in the model any more .*reparametrised"):
        strategy.train(experiences[1])


def test_a_copy_that_is_recognised_by_its_values_is_known_by_itself_from_then_on():
    plugin, experiences = EWCPlugin(1.0), stream([[0, 1]] * 2)
    strategy = learn(Net(), [experiences[0]], plugin)
    strategy.model = copy.deepcopy(strategy.model)
    plugin.before_training_exp(at_the_start_of(strategy, experiences[1]))
    with torch.no_grad():
        strategy.model.fc.bias.add_(1.0)
    expected = plugin.importances["fc.bias"].sum() / 2
    torch.testing.assert_close(plugin.penalty(strategy.model).detach(), expected)


class Renaming(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("kind", PLUGINS)
@pytest.mark.parametrize(
    "wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel, copy.deepcopy, Renaming]
)
def test_a_model_that_is_wrapped_or_copied_between_experiences_keeps_its_anchors(kind, wrap):
    experiences = stream([[0, 1]] * 2)
    found = []
    for between in (lambda m: m, wrap):
        torch.manual_seed(4)
        plugin = PLUGINS[kind]()
        strategy = learn(Net(), [experiences[0]], plugin)
        strategy.model = between(strategy.model)
        strategy.make_optimizer(reset_optimizer_state=True)
        strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=0.05)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(exchanged|not in the model|afresh)")
            strategy.train(experiences[1])
        prefix = "net." if wrap is Renaming and between is wrap else ""
        found.append(
            (list(strategy.model.parameters()), [anchors_of(plugin)[prefix + n] for n in ("body.weight", "fc.bias")])
        )
    for plain, wrapped in zip(*found, strict=True):
        for a, b in zip(plain, wrapped, strict=True):
            torch.testing.assert_close(a, b)


def test_a_model_that_is_distributed_between_experiences_keeps_its_anchors(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/peers", rank=0, world_size=1)
    try:
        plugin, experiences = EWCPlugin(1.0, "separate"), stream([[0, 1]] * 2)
        strategy = learn(Net(), [experiences[0]], plugin)
        plain = strategy.model
        strategy.model = nn.parallel.DistributedDataParallel(plain)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(exchanged|not in the model|afresh)")
            strategy.train(experiences[1])
        expected = diagonal_fisher(plain, experiences[1].dataset)
        for name, value in expected.items():
            torch.testing.assert_close(plugin.importances[1][name], value)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_layer_that_grows_keeps_the_anchors_of_its_old_units(kind):
    plugin, experiences = PLUGINS[kind](), stream([[0, 1], [2, 3]])
    model = mlp()
    model.classifier = IncrementalClassifier(5, initial_out_features=2)
    strategy = learn(model, [experiences[0]], plugin)
    model.classifier.adaptation(experiences[1])
    assert plugin.penalty(model).item() == 0
    with torch.no_grad():
        model.classifier.classifier.weight[2:] += 1
    assert plugin.penalty(model).item() == 0, "new units begin with importance 0"
    with torch.no_grad():
        model.classifier.classifier.weight[0] += 1
    assert plugin.penalty(model).item() > 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(exchanged|not in the model|afresh)")
        strategy.train(experiences[1])


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_plugin_used_for_a_second_strategy_starts_afresh(kind):
    shared, experiences = PLUGINS[kind](), stream([[0, 1]] * 2)
    for seed in range(2):
        learned = []
        for plugin in (PLUGINS[kind](), shared):
            torch.manual_seed(seed)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                learned.append(learn(Net(), experiences, plugin).model)
            afresh = [w for w in caught if "it starts afresh" in str(w.message)]
            assert len(afresh) == (plugin is shared and seed == 1)
        assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in learned), strict=True))


def test_a_second_strategy_is_checked_too():
    plugin, experiences = EWCPlugin(1.0), stream([[0, 1]])
    learn(Net(), experiences, plugin)
    unfit = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 2))
    before = unfit[0].weight.clone()
    with pytest.warns(UserWarning, match="it starts afresh"), pytest.raises(ValueError, match="nothing was trained"):
        learn(unfit, experiences, plugin)
    assert torch.equal(unfit[0].weight, before)


def test_what_depends_on_the_whole_minibatch_is_refused_but_where_that_is_what_is_measured():
    def network():
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 2))

    with pytest.raises(ValueError, match=r"nothing was trained: .* without running statistics"):
        learn(network(), stream([[0, 1]]), EWCPlugin(1.0, fisher="empirical"))
    plugin = EWCPlugin(1.0, fisher="batched")
    learn(network(), stream([[0, 1]]), plugin)
    assert all(f.any() for name, f in plugin.importances.items() if name.startswith("2."))


def test_a_second_strategy_on_the_model_as_it_was_left_goes_on_and_on_one_that_was_reset_does_not():
    plugin, experiences = EWCPlugin(1.0), stream([[0, 1]] * 3)
    model = learn(Net(), [experiences[0]], plugin).model
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*afresh")
        learn(model, [experiences[1]], plugin)
    assert plugin.consolidated == 2
    model.fc.reset_parameters()
    with pytest.warns(UserWarning, match="it starts afresh"):
        learn(model, [experiences[2]], plugin)
    assert plugin.consolidated == 1


def test_all_anchors_may_be_deleted():
    plugin, experiences = EWCPlugin(1.0, "separate"), stream([[0, 1]] * 2)
    strategy = learn(Net(), [experiences[0]], plugin)
    plugin.importances.clear()
    plugin.anchors.clear()
    strategy.train(experiences[1])
    assert len(plugin.anchors) == 1


def test_of_several_anchors_it_is_the_latest_that_says_whether_a_model_is_as_it_was_left():
    plugin, experiences = EWCPlugin(0.1, "separate"), stream([[0, 1]] * 4)
    model = learn(Net(), experiences[:3], plugin).model
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*afresh")
        learn(model, [experiences[3]], plugin)
    assert len(plugin.anchors) == 4


def test_a_plugin_and_its_model_survive_pickling():
    plugin, experiences = EWCPlugin(1.0), stream([[0, 1]] * 2)
    model = learn(Net(), [experiences[0]], plugin).model
    plugin, model = pickle.loads(pickle.dumps((plugin, model)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*afresh")
        learn(model, [experiences[1]], plugin)
    assert plugin.consolidated == 2


@pytest.mark.parametrize("kind", PLUGINS)
def test_what_is_loaded_goes_on_whatever_the_plugin_was_used_for_before(kind):
    """With heads, of which an experience has its own: every anchor is found by its name."""
    experiences = stream([[0, 1]] * 3, task_incremental=True)
    torch.manual_seed(3)
    strategy = learn(as_multitask(mlp(), "classifier"), experiences[:2], PLUGINS[kind]())
    state, model = strategy.plugins[0].state_dict(), copy.deepcopy(strategy.model)
    learned = []
    for used in (False, True):
        plugin = PLUGINS[kind]()
        if used:
            learn(as_multitask(mlp(), "classifier"), experiences[:1], plugin)
        plugin.load_state_dict(copy.deepcopy(state))
        assert plugin.consolidated == 2
        torch.manual_seed(4)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(exchanged|not in the model|afresh)")
            learned.append(learn(copy.deepcopy(model), [experiences[2]], plugin).model)
        assert plugin.consolidated == 3
    torch.manual_seed(4)
    strategy.train(experiences[2])
    for a, b, c in zip(*(m.parameters() for m in [*learned, strategy.model]), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_heads_of_several_experiences_are_found_under_another_name():
    experiences = stream([[0, 1]] * 3, task_incremental=True)
    plugin = EWCPlugin(1.0, "separate")
    strategy = learn(as_multitask(mlp(), "classifier"), experiences[:2], plugin)
    with torch.no_grad():
        for p in strategy.model.parameters():
            p.add_(0.1)
    before, (first, second) = plugin.penalty(strategy.model).item(), plugin.importances
    wrapped = Renaming(strategy.model)
    assert plugin.penalty(wrapped).item() == pytest.approx(before)
    assert before > 0
    assert len(first) < len(second)
    assert all(name.startswith("net.") for of in (*plugin.importances, *plugin.anchors) for name in of)


def test_a_plugin_that_was_copied_with_its_model_goes_on_however_the_model_was_changed():
    plugin, experiences = EWCPlugin(1.0), stream([[0, 1]] * 2)
    plugin, model = pickle.loads(pickle.dumps((plugin, learn(Net(), [experiences[0]], plugin).model)))
    with torch.no_grad():
        model.fc.bias += 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*afresh")
        learn(model, [experiences[1]], plugin)
    assert plugin.consolidated == 2


def test_a_parameter_that_shrank_is_refused():
    plugin = EWCPlugin(1.0)
    model = learn(Net(3), stream([[0, 1]]), plugin).model
    model.fc.weight.data = model.fc.weight.data[:2]
    with pytest.raises(ValueError, match=r"a parameter shrank from shape \(3, 5\) to \(2, 5\); it may only grow"):
        plugin.penalty(model)


# --- where an experience ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 8, 20])  # 8 divides 40: Avalanche marks no sub-experience as the last
@pytest.mark.parametrize("kind", PLUGINS)
def test_an_online_stream_consolidates_where_its_experiences_end(kind, size):
    plugin, parts = PLUGINS[kind](), list(online(size, 3))
    model = learn(Net(), parts, plugin).model
    assert plugin.consolidated == 3
    if kind == "ewc-separate":
        assert len(plugin.anchors) == 3
        whole = diagonal_fisher(model, parts[-1].origin_experience.dataset)
        for name, f in plugin.importances[2].items():
            torch.testing.assert_close(f, whole[name])


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_strategy_for_every_piece_is_as_good_as_one_for_all(kind):
    """As scripts have it that make an optimiser anew for every piece."""
    found, parts = [], list(online(10))
    for each_anew in (False, True):
        torch.manual_seed(0)
        plugin, model = PLUGINS[kind](), Net()
        strategy = learn(model, [], plugin)
        for part in parts:
            torch.manual_seed(1)
            (learn(model, [], plugin) if each_anew else strategy).train(part)
        found.append(plugin)
    for name, anchor in anchors_of(found[0]).items():
        torch.testing.assert_close(anchors_of(found[1])[name], anchor)
    assert found[1].consolidated == 2


def test_samples_are_counted_over_several_strategies_of_one_model():
    plugin, model = EWCPlugin(1.0, "separate", consolidate_every=80), Net()
    for experience in stream([[0, 1]] * 4):
        learn(model, [experience], plugin)
    assert plugin.consolidated == 2
    learn(model, stream([[0, 1]]), plugin)
    learn(Net(), stream([[0, 1]]), plugin)
    assert not plugin.anchors, "another model's samples are not counted"


def test_importance_data_of_an_online_stream_has_an_entry_an_experience():
    plugin = MASPlugin(1.0, importance_data=[e.dataset for e in stream([[0, 1]] * 2)])
    learn(Net(), online(10), plugin)
    assert plugin.consolidated == 2


def test_a_stream_that_hides_its_boundaries_needs_a_number_of_samples():
    def hidden():
        for part in online(5):
            yield part.train()

    with pytest.raises(ValueError, match=r"the stream hides where an experience ends; .*, or give consolidate_every"):
        learn(Net(), hidden(), EWCPlugin(1.0))
    plugin = EWCPlugin(1.0, "separate", consolidate_every=20)
    learn(Net(), hidden(), plugin)
    assert len(plugin.anchors) == 4  # 80 samples


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(TensorDataset(torch.zeros(3, 6))), "is a DataLoader; give the data set"),
        (torch.zeros(3, 6), "is a tensor; give torch.utils.data.TensorDataset"),
        (stream([[0, 1]])[0], "is one experience; give its .dataset"),
        (7, "must be a data set or a sequence of them; got a int"),
        ([TensorDataset(torch.zeros(3, 6)), torch.zeros(3, 6)], "has a Tensor among its entries; give data sets"),
        ((DataLoader(TensorDataset(torch.zeros(3, 6))),), "has a DataLoader among its entries; give data sets"),
        ([(torch.zeros(6), 0)] * 3, "has a tuple among its entries; give data sets"),
    ],
)
def test_importance_data_that_is_no_data_set_is_refused_at_once(data, message):
    with pytest.raises(ValueError, match=message):
        MASPlugin(1.0, importance_data=data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TensorDataset(torch.zeros(4, 5)), "RuntimeError: .*shapes cannot be multiplied"),
        (TensorDataset(torch.zeros(4, 6, dtype=torch.double)), "RuntimeError: .*dtype"),
        (TensorDataset(torch.zeros(0, 6)), "an importance needs at least one sample; the dataset is empty"),
    ],
)
def test_importance_data_that_does_not_fit_is_refused_before_training(data, message):
    model = Net()
    before = model.fc.weight.clone()
    with pytest.raises(ValueError, match=f"MASPlugin cannot work here, and nothing was trained: {message}"):
        learn(model, stream([[0, 1]]), MASPlugin(1.0, importance_data=data))
    assert torch.equal(model.fc.weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty_step": "implicit"}, "penalty_step must be one of gradient, proximal; got 'implicit'"),
        ({"consolidate_every": 0}, "consolidate_every must be at least 1; got 0"),
        ({"consolidate_every": 1e2}, "consolidate_every must be a whole number; got 100.0"),
        ({"fisher_samples": 1e2}, "fisher_samples must be a whole number; got 100.0"),
        ({"fisher_samples": "10"}, "fisher_samples must be a whole number; got '10'"),
        ({"fisher_samples": True}, "fisher_samples must be a whole number; got True"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"batch_size": 32.0}, "batch_size must be a whole number; got 32.0"),
        ({"gamma": "1"}, "gamma must be a finite number; got '1'"),
        ({"gamma": float("nan")}, "gamma must be a finite number; got nan"),
        ({"noise_std": float("inf")}, "noise_std must be a finite number; got inf"),
        ({"exclude": [3]}, "exclude must be names of parameters and kinds of modules; got 3"),
        ({"exclude": [int]}, "exclude must be names of parameters and kinds of modules; got <class 'int'>"),
    ],
)
def test_an_option_out_of_its_range_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        EWCPlugin(1.0, **options)


def test_the_ends_of_the_ranges_are_allowed():
    plugin = EWCPlugin(0, "online", gamma=0, fisher_samples=1, consolidate_every=1)
    learn(Net(), stream([[0, 1]] * 2), plugin)
    assert plugin.consolidated == 2


class OnesOwn(QuadraticPenaltyPlugin):
    def importance(self, strategy):
        return {name: torch.ones_like(p) for name, p in strategy.model.named_parameters()}


@pytest.mark.parametrize(
    ("make", "name"),
    [(EWCPlugin, "ewc_lambda"), (MASPlugin, "mas_lambda"), (L2Plugin, "l2_lambda"), (OnesOwn, "coefficient")],
)
def test_a_negative_lambda_is_named_as_it_was_given(make, name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 0; got -1$"):
        make(-1)


@pytest.mark.parametrize("value", ["10", None, float("inf"), float("nan"), torch.ones(2)])
def test_a_lambda_that_is_no_finite_number_is_named_as_it_was_given(value):
    for make, name in ((EWCPlugin, "ewc"), (MASPlugin, "mas"), (L2Plugin, "l2")):
        with pytest.raises(ValueError, match=rf"^{name}_lambda must be a finite number; got {re.escape(repr(value))}$"):
            make(value)


def test_numbers_of_other_libraries_are_numbers():
    plugin = EWCPlugin(torch.tensor(2.0), fisher_samples=np.int64(9), consolidate_every=torch.tensor(8), exclude=None)
    learn(Net(), stream([[0, 1]]), plugin)
    assert plugin.consolidated == 1
    assert MASPlugin(np.float32(1), batch_size=np.int32(4), exclude=None).exclude == []


@pytest.mark.parametrize("fisher", ["exact", "sampled", "empirical", "batched", None])
@pytest.mark.parametrize("position", [0, 1, 1100])
def test_a_sample_that_is_no_number_is_named(fisher, position):
    torch.manual_seed(0)
    x, y = torch.randn(1200, 6), torch.arange(1200) % 2
    x[position, 2] = float("nan")
    where = "the mini-batch of samples" if fisher == "batched" else f"sample {position}"
    data = TensorDataset(x, y)
    measure = partial(mas_importance, Net(), data) if fisher is None else partial(diagonal_fisher, Net(), data, fisher)
    with pytest.raises(ValueError, match=f"of 'body.weight' is not finite (for|in) {where}"):
        measure()


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_network_that_was_frozen_after_an_experience_is_refused_in_one_line(kind):
    plugin, experiences = PLUGINS[kind](), stream([[0, 1]] * 2)
    strategy = learn(Net(), [experiences[0]], plugin)
    strategy.model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"Plugin cannot work here, .*: no parameter of the network requires"):
        strategy.train(experiences[1])


@pytest.mark.parametrize("kind", PLUGINS)
def test_parameters_that_are_no_numbers_any_more_are_named(kind):
    class Diverge(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            strategy.model.fc.bias.data.fill_(float("nan"))

    plugin = PLUGINS[kind]()
    with pytest.raises(ValueError, match=r"the parameter 'fc.bias' is not finite .* training has diverged"):
        learn(Net(), stream([[0, 1]]), Diverge(), plugin)
    assert not plugin.importances


def batch_norm_by_the_batch(strategy):
    strategy.model = nn.Sequential(strategy.model, nn.BatchNorm1d(2, track_running_stats=False))


def of_log_probabilities(strategy):
    strategy._criterion = nn.NLLLoss()


@pytest.mark.parametrize("likelihood", [None, "categorical"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (batch_norm_by_the_batch, "'1' is a BatchNorm1d without running statistics"),
        (of_log_probabilities, r"the criterion \(NLLLoss\) needs log-probabilities"),
    ],
)
def test_what_is_changed_between_experiences_is_checked_as_in_the_first(change, message, likelihood):
    experiences = stream([[0, 1]] * 2)
    strategy = learn(Net(), experiences[:1], EWCPlugin(1.0, likelihood=likelihood))
    change(strategy)
    before = copy.deepcopy(strategy.model.state_dict())
    with pytest.raises(ValueError, match=f"cannot work here, and nothing was trained: {message}"):
        strategy.train(experiences[1])
    assert all(torch.equal(value, before[name]) for name, value in strategy.model.state_dict().items())


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 2, sparse=True)

    def forward(self, x):
        return self.words(x.abs().mul(3).long().clamp(max=8)).mean(1)


@pytest.mark.parametrize("fisher", ["exact", "batched"])
@pytest.mark.parametrize(
    "optimizer", [torch.optim.SparseAdam, torch.optim.SGD, partial(torch.optim.SGD, momentum=0.5), torch.optim.Adagrad]
)
def test_sparse_gradients_are_refused_where_the_penaltys_cannot_be_added_and_taken_everywhere_else(optimizer, fisher):
    experiences = stream([[0, 1]] * 2)
    for step in ("gradient", "proximal"):
        model, plugin = Words(), EWCPlugin(1.0, fisher=fisher, penalty_step=step)
        strategy = learn(model, [], plugin)
        strategy.optimizer = optimizer(model.parameters(), lr=0.1)
        if step == "gradient" and optimizer not in (torch.optim.SGD, torch.optim.Adagrad):
            with pytest.raises(ValueError, match=r"'words.weight' has sparse gradients .* penalty_step='proximal', or"):
                strategy.train(experiences[0])
            assert not strategy.optimizer.state
        else:
            try:
                for experience in experiences:
                    strategy.train(experience)
            except KeyError:
                pytest.skip("Avalanche empties a state that this optimiser does not make anew in this release of torch")
            assert plugin.consolidated == 2


# --- what samples are made of -----------------------------------------------------------------------------------------


def test_a_third_column_is_no_task_label_unless_the_model_has_several_heads():
    torch.manual_seed(0)
    x, y, attribute = torch.randn(24, 6), torch.arange(24) % 2, torch.arange(24) % 5
    with_attribute, without = TensorDataset(x, y, attribute), TensorDataset(x, y)
    model = Net()
    for fisher in ("exact", "batched"):
        found, expected = (diagonal_fisher(model, d, fisher, batch_size=8) for d in (with_attribute, without))
        assert all(torch.equal(found[name], expected[name]) for name in found)


class Parts(torch.utils.data.Dataset):
    def __init__(self, form):
        self.form = form
        self.x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 20

    def __getitem__(self, i):
        a, b = self.x[i], torch.arange(6.0) / 6
        return {"dict": {"values": a, "mask": b}, "tuple": (a, b)}[self.form], i % 2, 0


class OfParts(Net):
    def forward(self, x):
        values, mask = x.values() if isinstance(x, dict) else x
        return super().forward(values * mask), values  # more than outputs


class Own(SupervisedTemplate):
    def forward(self):
        return self.model(self.mb_x)[0]

    def _unpack_minibatch(self):
        pass


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_what_the_strategys_own_forward_takes_is_measured(form):
    data = make_avalanche_dataset(Parts(form))
    plugins = [EWCPlugin(1.0), MASPlugin(1.0), EWCPlugin(1.0, fisher="empirical")]
    model = OfParts()
    strategy = Own(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), criterion=nn.CrossEntropyLoss(),
        train_mb_size=8, plugins=plugins, evaluator=quiet(),
    )  # fmt: skip
    strategy.train(benchmark_from_datasets(train=[data]).train_stream[0])
    x, y = Parts(form).x * (torch.arange(6.0) / 6), torch.arange(20) % 2
    plain = Net()
    plain.load_state_dict(model.state_dict())
    expected = [
        diagonal_fisher(plain, TensorDataset(x, y)),
        mas_importance(plain, TensorDataset(x)),
        diagonal_fisher(plain, TensorDataset(x, y), "empirical"),
    ]
    for plugin, importances in zip(plugins, expected, strict=True):
        assert plugin.importances.keys() == importances.keys()
        for name, value in importances.items():
            torch.testing.assert_close(plugin.importances[name], value)


class Halved(SupervisedTemplate):
    """Its inputs are halved when a minibatch is taken apart; samples are (label, inputs)."""

    def _unpack_minibatch(self):
        *y, x = self.mbatch
        self.mbatch = [x / 2, *y]


def test_minibatches_are_taken_apart_as_the_strategy_does():
    torch.manual_seed(0)
    x, y = torch.randn(20, 6), torch.arange(20) % 2
    model = Net()
    plugins = [EWCPlugin(1.0), EWCPlugin(1.0, fisher="empirical"), MASPlugin(1.0, importance_data=TensorDataset(x))]
    strategy = Halved(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), criterion=nn.CrossEntropyLoss(),
        train_mb_size=8, plugins=plugins, evaluator=quiet(),
    )  # fmt: skip
    strategy.train(benchmark_from_datasets(train=[make_avalanche_dataset(TensorDataset(y, x))]).train_stream[0])
    halved = TensorDataset(x / 2, y)
    expected = [
        diagonal_fisher(model, halved),
        diagonal_fisher(model, halved, "empirical"),
        mas_importance(model, halved),
    ]
    for plugin, importances in zip(plugins, expected, strict=True):
        for name, value in importances.items():
            torch.testing.assert_close(plugin.importances[name], value)


class Sample:
    """Of a form that only its data set's own collation knows."""

    def __init__(self, x, y):
        self.x, self.y = x, y


class OfSamples(TensorDataset):
    def __getitem__(self, i):
        return Sample(*super().__getitem__(i))

    @staticmethod
    def collate_fn(samples):
        return torch.stack([one.x for one in samples]), torch.stack([one.y for one in samples])


class Collating(SupervisedTemplate):
    def make_train_dataloader(self, **kwargs):
        self.dataloader = DataLoader(self.adapted_dataset, 8, collate_fn=self.adapted_dataset.collate_fn)


def test_samples_are_put_together_as_their_data_set_says_those_of_several_experiences_too():
    torch.manual_seed(0)
    tensors = torch.randn(40, 6), torch.arange(40) % 2
    halves = [OfSamples(*(column[part] for column in tensors)) for part in (slice(0, 20), slice(20, 40))]
    data = [make_avalanche_dataset(half) for half in halves]
    plugins, model = [EWCPlugin(1.0, consolidate_every=40), MASPlugin(1.0, consolidate_every=40)], Net()
    strategy = Collating(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), criterion=nn.CrossEntropyLoss(),
        plugins=plugins, evaluator=quiet(),
    )  # fmt: skip
    for experience in benchmark_from_datasets(train=data).train_stream:
        strategy.train(experience)
    for plugin, measure in zip(plugins, (diagonal_fisher, mas_importance), strict=True):
        assert plugin.consolidated == 1
        for name, value in measure(model, TensorDataset(*tensors)).items():
            torch.testing.assert_close(plugin.importances[name], value)


class LabelsLast(SupervisedTemplate):
    """Samples are (inputs, something else, label)."""

    @property
    def mb_y(self):
        return self.mbatch[2]


class AllColumns(LabelsLast):
    """It says of every column what it is."""

    @property
    def mb_x(self):
        return self.mbatch[0]

    @property
    def mb_task_id(self):
        return torch.zeros_like(self.mbatch[2])


@pytest.mark.parametrize("kind", [LabelsLast, AllColumns])
def test_the_columns_are_those_that_the_strategy_says(kind):
    torch.manual_seed(0)
    x, y, other = torch.randn(20, 6), torch.arange(20) % 2, torch.randn(20)
    model, plugin = Net(), EWCPlugin(1.0, fisher="empirical")
    strategy = kind(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), criterion=nn.CrossEntropyLoss(),
        train_mb_size=8, plugins=[plugin], evaluator=quiet(),
    )  # fmt: skip
    data = make_avalanche_dataset(TensorDataset(x, other, y))
    strategy.train(benchmark_from_datasets(train=[data]).train_stream[0])
    for name, value in diagonal_fisher(model, TensorDataset(x, y), "empirical").items():
        torch.testing.assert_close(plugin.importances[name], value)


class Unmeasured(torch.utils.data.Dataset):
    def __getitem__(self, i):
        return torch.zeros(6), 0


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(6), 0)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(TensorDataset(torch.zeros(3, 6))), "is a DataLoader; give the data set that it loads"),
        (stream([[0, 1]])[0], "is one experience; give its .dataset"),
        (Unmeasured(), "must have a length and be indexed by numbers; got a Unmeasured"),
        (Endless(), "must have a length and be indexed by numbers; got a Endless"),
        ([], "the dataset is empty"),
    ],
)
def test_what_is_no_data_set_is_named(data, message):
    for measure in (diagonal_fisher, mas_importance):
        with pytest.raises(ValueError, match=message):
            measure(Net(), data)


def test_gradients_are_needed_wherever_an_importance_is_asked_for():
    model, data = Net(), TensorDataset(torch.randn(9, 6), torch.arange(9) % 2)
    expected = {fisher: diagonal_fisher(model, data, fisher) for fisher in ("exact", "batched")}
    with torch.no_grad():
        found = {fisher: diagonal_fisher(model, data, fisher) for fisher in expected}
    assert all(torch.equal(found[fisher][name], value) for fisher, of in expected.items() for name, value in of.items())
    with torch.inference_mode(), pytest.raises(ValueError, match=r"in torch.inference_mode\(\) nothing has one"):
        diagonal_fisher(model, data)


class Described(torch.utils.data.Dataset):
    """Labels are a name and a box, which no importance reads unless it has to."""

    def __init__(self):
        self.x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return self.x[i], {"name": f"sample {i}", "box": torch.zeros(4)}


def test_labels_of_any_form_will_do_where_none_are_read():
    model, data, plain = Net(), Described(), TensorDataset(Described().x)
    for measure in (diagonal_fisher, mas_importance, partial(mas_importance, variant="local")):
        found, expected = (measure(nn.Sequential(model.body, nn.ReLU(), model.fc), d) for d in (data, plain))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="fisher='empirical' reads labels; the dataset's are dict, no tensor"):
        diagonal_fisher(model, data, "empirical")
    with pytest.raises(ValueError, match="fisher='batched' reads labels; the dataset's are NoneType, no tensor"):
        diagonal_fisher(model, plain, "batched")


class InPlace(Net):
    """Centres its inputs in place; with a parameter outside of any layer, and by choice an ``.item()``."""

    def __init__(self, asks):
        super().__init__()
        self.scale, self.asks = nn.Parameter(torch.rand(6) + 0.5), asks

    def forward(self, x):
        x -= 0.5
        x *= 2
        assert not self.asks or x.sum().item() < 1e9
        return super().forward(x * self.scale)


@pytest.mark.filterwarnings("ignore:torch cannot vectorise")
@pytest.mark.parametrize("asks", [False, True])
def test_a_network_that_changes_its_inputs_in_place_gets_each_sample_as_it_is(asks):
    torch.manual_seed(0)
    model, x = InPlace(asks).double(), torch.randn(10, 6, dtype=torch.double)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for sample in x:
        gradients = torch.autograd.grad(model(sample[None].clone()).square().sum(), list(model.parameters()))
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            expected[name] += gradient.abs() / len(x)
    found = mas_importance(model, TensorDataset(x.clone()))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


class Remembering(nn.Module):
    """Carries its last state over to the next batch of the same size, if it is told to."""

    def __init__(self, carry):
        super().__init__()
        self.body, self.fc, self.carry, self.state = nn.RNNCell(6, 5), nn.Linear(5, 2), carry, None

    def forward(self, x):
        before = self.state if self.carry and self.state is not None and len(self.state) == len(x) else None
        self.state = self.body(x, before)
        return self.fc(self.state)


@pytest.mark.filterwarnings("ignore:torch cannot vectorise")
def test_a_network_keeps_no_state_of_being_measured_and_one_that_needs_it_is_refused():
    torch.manual_seed(0)
    model, data = Remembering(carry=False), TensorDataset(torch.randn(10, 6), torch.arange(10) % 2)
    model.fc.weight.data *= 9
    model(data.tensors[0])
    state = model.state
    for fisher in ("exact", "batched"):
        diagonal_fisher(model, data, fisher)
        assert model.state is state
    model.carry = True
    with pytest.raises(ValueError, match="for the same samples change from one pass to the next"):
        diagonal_fisher(model, data)


def test_samples_of_unequal_length_are_measured_one_by_one():
    bags = [(torch.randn(2 + i % 3, 6), i % 2) for i in range(10)]

    class Pooled(Net):
        def forward(self, x):
            return self.fc(self.body(x).relu().mean(1))

    model = Pooled().double()
    bags = [(x.double(), y) for x, y in bags]
    found = diagonal_fisher(model, bags, "empirical")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in bags:
        model.zero_grad()
        functional.cross_entropy(model(x[None]), torch.tensor([y])).backward()
        for name, p in model.named_parameters():
            expected[name] += p.grad**2 / len(bags)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    two = diagonal_fisher(model, bags[:2], "empirical")
    one_by_one = [diagonal_fisher(model, [bag], "empirical") for bag in bags[:2]]
    for name, value in two.items():
        torch.testing.assert_close(value, sum(of[name] for of in one_by_one) / 2)


class Named(torch.utils.data.Dataset):
    """Beside its numbers, an input has a name, which is no tensor."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"a name": f"sample {i}", "x": self.x[i]}, i % 2


class OfNamed(MultiTaskModule):
    """Of one task or several, by a forward of its own."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs, task_labels):
        assert task_labels.tolist() == [0] * len(inputs["x"])
        return self.net(inputs["x"])


def test_of_inputs_the_tensors_are_what_is_divided_into_samples():
    torch.manual_seed(0)
    x, net = torch.randn(12, 6), Net()
    expected = diagonal_fisher(net, TensorDataset(x))
    found = diagonal_fisher(OfNamed(net), Named(x), samples_at_once=5)
    for name, value in expected.items():
        torch.testing.assert_close(found[f"net.{name}"], value)


class Spoken(torch.utils.data.Dataset):
    """Inputs with a language, which chooses the head; collated to what a training step takes."""

    def __init__(self):
        self.x = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
        self.languages = ["en" if i < 3 or i % 3 else "de" for i in range(10)]

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return {"values": self.x[i], "language": self.languages[i]}, i % 2


class Spoke:
    def __init__(self, values, language):
        self.values, self.language = values, language


FORMS = {
    "a dict": lambda values, languages: {"values": torch.stack(values), "language": languages},
    "a UserDict": lambda values, languages: UserDict(values=torch.stack(values), language=languages),
    "an object": lambda values, languages: Spoke(torch.stack(values), languages),
    "an array": lambda values, languages: {"values": torch.stack(values).numpy(), "language": languages},
    "lists": lambda values, languages: {"values": values, "language": languages},
    "a tuple": lambda values, languages: (torch.stack(values), languages),
}


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.heads = nn.Linear(6, 5), nn.ModuleDict({name: nn.Linear(5, 2) for name in ("en", "de")})

    def forward(self, x):
        if isinstance(x, Spoke):
            x = vars(x)
        values, languages = x if isinstance(x, tuple) else (x["values"], x["language"])
        rows = zip(list(values), languages, strict=True)
        return torch.stack([self.heads[name](self.body(torch.as_tensor(row)).relu()) for row, name in rows])


def collated(form, samples):
    inputs, y = zip(*samples, strict=True)
    values, languages = [x["values"] for x in inputs], [x["language"] for x in inputs]
    return [FORMS[form](values, languages), torch.tensor(y)]


@pytest.mark.parametrize("form", FORMS)
def test_samples_that_are_not_made_of_tensors_are_measured_as_their_collation_gives_each(form):
    torch.manual_seed(0)
    model, data = Heads(), Spoken()
    data.collate_fn = partial(collated, form)
    parameters = dict(model.named_parameters())
    expected = [{name: torch.zeros_like(p) for name, p in parameters.items()} for _ in range(3)]

    def add(sums, of, statistic):
        gradients = torch.autograd.grad(of, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            sums[name] += 0 if gradient is None else statistic(gradient)

    for sample in data:
        x, y = collated("a dict", [sample])
        add(expected[0], functional.cross_entropy(model(x), y), lambda g: g.square() / 10)
        add(expected[1], model(x).square().sum(), lambda g: g.abs() / 10)
    for start in range(0, 10, 5):
        x, y = collated("a dict", [data[i] for i in range(start, start + 5)])
        add(expected[2], functional.cross_entropy(model(x), y), lambda g: g.square() / 2)
    found = [
        diagonal_fisher(model, data, "empirical"),
        mas_importance(model, data),
        diagonal_fisher(model, data, "batched", batch_size=5),
    ]
    for of, importances in zip(found, expected, strict=True):
        for name, value in importances.items():
            torch.testing.assert_close(of[name], value)


class Wrapped(Spoken):
    """Its inputs are a tuple of one."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return (x,), y


def test_a_collation_may_make_more_inputs_than_a_sample_has():
    torch.manual_seed(0)
    model, data, wrapped = Heads(), Spoken(), Wrapped()
    data.collate_fn = partial(collated, "a tuple")
    wrapped.collate_fn = lambda samples: collated("a tuple", [(x, y) for (x,), y in samples])
    found = mas_importance(model, wrapped)
    for name, value in mas_importance(model, data).items():
        torch.testing.assert_close(found[name], value)


class SpokenButTheFirst(Spoken):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x, y if i else 255


class AsItComes(Collating):
    def _unpack_minibatch(self):
        pass


def test_the_density_of_samples_that_are_not_made_of_tensors_is_known_by_several():
    """The first one's label may be one that the criterion leaves out."""
    torch.manual_seed(0)
    model, data, plugin = Heads(), SpokenButTheFirst(), EWCPlugin(1.0)
    data.collate_fn = partial(collated, "a dict")
    strategy = AsItComes(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), evaluator=quiet(), plugins=[plugin],
        criterion=lambda f, y: functional.cross_entropy(f, y, ignore_index=255),
    )  # fmt: skip
    strategy.train(benchmark_from_datasets(train=[make_avalanche_dataset(data)]).train_stream[0])
    labelled = torch.utils.data.Subset(data, range(1, 10))
    labelled.collate_fn = data.collate_fn  # type: ignore[attr-defined]
    for name, value in diagonal_fisher(model, labelled).items():
        torch.testing.assert_close(plugin.importances[name], value)


# --- memory and loading -----------------------------------------------------------------------------------------------


class Largest(nn.Sequential):
    """Remembers the batches that it saw; in its class, since what measuring leaves in a network is taken back."""

    def __init__(self, *layers):
        super().__init__(*layers)
        type(self).seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return super().forward(x)


def test_a_pass_takes_as_many_samples_as_two_training_steps_or_a_little_memory_in_any_case(monkeypatch):
    def largest(side, **options):
        model = Largest(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
        mas_importance(model, TensorDataset(torch.zeros(60, 1, side, side)), **options)
        return max(model.seen)

    monkeypatch.setattr(per_sample_gradients, "ACTIVATIONS_AT_ONCE", 2**22)
    assert largest(6) == 60
    assert 3 < largest(42, batch_size=2) < 45  # 16 x 40 x 40 floats are 0.1 MB; once to ten times, in 4 MiB
    assert largest(42, batch_size=25) == 50
    assert largest(42, batch_size=2, samples_at_once=55) == 55


@pytest.mark.parametrize("make", [lambda: EWCPlugin(1.0, batch_size=6), lambda: MASPlugin(1.0, batch_size=6)])
def test_batch_size_is_that_of_the_passes(make):
    model = Largest(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    strategy = learn(model, [], make())
    strategy.experience = stream([[0, 1]])[0]
    strategy.plugins[0].importance(strategy)
    assert max(model.seen) == 6
    if isinstance(strategy.plugins[0], MASPlugin):
        strategy.train(strategy.experience)
        model.seen.clear()
        strategy.plugins[0].observe(model, TensorDataset(torch.randn(40, 6)))
        assert max(model.seen) == 6


def test_num_workers_of_train_reach_the_importance(monkeypatch):
    seen = []
    loader = torch.utils.data.DataLoader

    def watched(*args, **kwargs):
        seen.append(kwargs.pop("num_workers", 0))
        return loader(*args, **kwargs)

    monkeypatch.setattr("engrams.strategies.minibatches.DataLoader", watched)
    strategy = learn(Net(), [], EWCPlugin(1.0), MASPlugin(1.0, num_workers=3))
    experience = stream([[0, 1]])[0]
    for plugin in strategy.plugins[:2]:
        plugin.before_training_exp(at_the_start_of(strategy, experience), num_workers=2)
        seen.clear()
        plugin.importance(strategy)
        assert max(seen) == (2 if isinstance(plugin, EWCPlugin) else 3)
    seen.clear()
    learn(Net(), [experience], EWCPlugin(1.0))
    assert set(seen) == {0}


def test_what_takes_long_suggests_fewer_samples(monkeypatch):
    monkeypatch.setattr(per_sample_gradients, "LONG", 0.0)
    with pytest.warns(UserWarning, match="exact Fisher information will take about .* fisher_samples"):
        diagonal_fisher(Net(), TensorDataset(torch.randn(9, 6)))
    with pytest.warns(UserWarning, match="global memory aware importance will take about .* importance_data"):
        mas_importance(Net(), TensorDataset(torch.randn(9, 6)))


class Prototypes(Net):
    """Of which there are none at first, and a head that is still without units."""

    def __init__(self):
        super().__init__()
        self.pool, self.more = nn.Parameter(torch.zeros(0, 5)), nn.Linear(5, 0)

    def forward(self, x):
        hidden = self.body(x).relu() + self.pool.sum(0)
        return self.fc(hidden) + self.more(hidden).sum(1, keepdim=True)


@pytest.mark.parametrize("kind", [*PLUGINS, "ewc-batched"])
def test_a_parameter_without_entries_does_no_harm_and_one_that_has_got_some_is_new(kind):
    plugin = {**PLUGINS, "ewc-batched": lambda: EWCPlugin(1.0, fisher="batched", batch_size=8)}[kind]()
    experiences = stream([[0, 1]] * 2)
    model = Prototypes()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(vectorise|exchanged|not in the model)")
        strategy = learn(model, experiences[:1], plugin)
        whole = anchors_of(plugin).keys()
        assert whole == {"body.weight", "body.bias", "fc.weight", "fc.bias"}
        model.pool = nn.Parameter(torch.randn(2, 5))
        strategy.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        assert plugin.penalty(model) == 0
        strategy.train(experiences[1])
    assert anchors_of(plugin).keys() == whole | {"pool"}


# --- the penalty's derivatives and steps ------------------------------------------------------------------------------


def test_the_penalty_has_second_derivatives():
    plugin = EWCPlugin(6.0)
    model = nn.Linear(1, 1, bias=False)
    plugin.importances, plugin.anchors = {"weight": torch.tensor([[3.0]])}, {"weight": torch.tensor([[1.0]])}
    loss = model.weight.square().sum() + plugin.penalty(model)
    (first,) = torch.autograd.grad(loss, model.weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), model.weight)
    assert first.item() == pytest.approx(2 * model.weight.item() + 18 * (model.weight.item() - 1))
    assert second.item() == pytest.approx(20)


class Far(SupervisedPlugin):
    """Starts the second experience away from the anchor, with no gradient but the penalty's."""

    def before_training_exp(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter:
            with torch.no_grad():
                for p in strategy.model.parameters():
                    p.add_(0.1)


@pytest.mark.parametrize("lambda_", [0.1, 1e6])
def test_a_proximal_step_minimises_the_penalty_and_the_way_to_it_and_is_stable(lambda_):
    """argmin_t (lambda/2) F (t - a)^2 + (t - t0)^2 / (2 lr), found by Newton's method on autograd's derivatives."""
    plugin = L2Plugin(lambda_, penalty_step="proximal")
    strategy = learn(Net().double(), [], plugin)
    plugin.importances = {n: torch.rand_like(p) for n, p in strategy.model.named_parameters()}
    plugin.anchors = {n: torch.randn_like(p) for n, p in strategy.model.named_parameters()}
    plugin._terms, _ = plugin._matched(strategy.model)
    start = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}
    plugin.before_update(strategy)
    strategy.optimizer.step()  # without gradients
    plugin.after_update(strategy)
    lr = strategy.optimizer.param_groups[0]["lr"]
    for name, p in strategy.model.named_parameters():
        t = start[name].clone().requires_grad_()
        objective = (lambda_ / 2 * plugin.importances[name] * (t - plugin.anchors[name]) ** 2).sum()
        objective = objective + ((t - start[name]) ** 2).sum() / (2 * lr)
        (gradient,) = torch.autograd.grad(objective, t, create_graph=True)
        (curvature,) = torch.autograd.grad(gradient.sum(), t)
        torch.testing.assert_close(p.detach(), (t - gradient / curvature).detach())


def test_a_proximal_step_leaves_what_is_frozen_or_not_the_optimisers_where_it_is():
    plugin, experiences = L2Plugin(1.0, penalty_step="proximal"), stream([[0, 1]] * 2)
    strategy = learn(Net(), [experiences[0]], plugin)
    model = strategy.model
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    model.body.bias.requires_grad_(False)
    moving = [p for p in model.parameters() if p is not model.fc.bias]
    strategy.make_optimizer = lambda **_: None
    strategy.optimizer = torch.optim.SGD(moving, lr=0.05)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    strategy.train(experiences[1])
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"body.weight", "fc.weight"}


@pytest.mark.parametrize("kind", ["ewc", "mas", "l2"])
def test_where_gradient_steps_on_the_penalty_diverge_proximal_ones_do_not(kind):
    huge = {"ewc": EWCPlugin, "mas": MASPlugin, "l2": L2Plugin}[kind]
    experiences = stream([[0, 1], [1, 0]])

    def moved(step):
        plugin = huge(1e5, penalty_step=step)
        torch.manual_seed(0)
        strategy = learn(Net(), [experiences[0]], plugin)
        anchors = dict(plugin.anchors)
        with suppress(ValueError):  # parameters that are not finite
            strategy.train(experiences[1])
        away = torch.stack([(p - anchors[n]).abs().max() for n, p in strategy.model.named_parameters()])
        return away.max().item(), plugin  # NaN, if one is

    with pytest.warns(UserWarning, match="take penalty_step='proximal'"):
        explicit, _ = moved("gradient")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*will diverge")
        proximal, plugin = moved("proximal")
    assert not explicit < 10
    assert proximal < 1
    assert plugin.consolidated == 2


def test_a_small_proximal_penalty_ends_where_the_gradients_does():
    learned = []
    for step in ("gradient", "proximal"):
        torch.manual_seed(0)
        learned.append(learn(Net(), stream([[0, 1], [1, 0]]), EWCPlugin(1e-2, penalty_step=step)).model)
    for a, b in zip(*(m.parameters() for m in learned), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


class Accumulating(SupervisedTemplate):
    """A step of the optimiser every ``every`` minibatches."""

    every = 1

    def optimizer_step(self):
        if not (self.clock.train_exp_iterations + 1) % self.every:
            self.optimizer.step()


@pytest.mark.parametrize("every", [1, 4])
def test_there_is_a_proximal_step_for_every_step_of_the_optimiser_and_none_besides(every):
    """With no loss, a displacement shrinks by 1 / (1 + h) a step; whatever optimiser and plugin went on with it."""
    model, plugin = Net().double(), L2Plugin(1.0, penalty_step="proximal")
    x = torch.randn(32, 6, dtype=torch.double)
    experience = benchmark_from_datasets(train=[make_avalanche_dataset(TensorDataset(x, x))]).train_stream[0]

    def train():
        strategy = Accumulating(
            model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), criterion=lambda f, y: 0 * f.sum(),
            train_mb_size=4, plugins=[plugin], evaluator=quiet(),
        )  # fmt: skip
        strategy.every = every
        strategy.train(experience)
        assert not strategy.optimizer._optimizer_step_post_hooks

    train()
    for _ in range(2):
        model, plugin = pickle.loads(pickle.dumps((model, plugin)))
        anchor = model.fc.bias.detach().clone()
        with torch.no_grad():
            model.fc.bias += 1
        train()
        torch.testing.assert_close(model.fc.bias.detach(), anchor + 1.5 ** -(8 // every))


# --- options ----------------------------------------------------------------------------------------------------------


def unequal_regression_tasks():
    """Orthogonal designs (X'X = N_k F_k I), each experience of its own size and Fisher."""
    torch.manual_seed(0)
    tasks = []
    for size, fisher in ((16, 1.0), (64, 2.0), (32, 0.5)):
        x = torch.linalg.qr(torch.randn(size, 4, dtype=torch.double)).Q * (size * fisher) ** 0.5
        tasks.append((x, x @ torch.randn(4, 1, dtype=torch.double)))
    return tasks


def learn_unequal(plugin):
    tasks = unequal_regression_tasks()
    model = nn.Linear(4, 1, bias=False).double()
    for x, y in tasks:
        strategy = SupervisedTemplate(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            criterion=lambda output, y: (output - y).square().mean() / 2,
            train_mb_size=len(x),
            train_epochs=150,
            plugins=[plugin],
            evaluator=quiet(),
        )
        strategy.train(benchmark_from_datasets(train=[make_avalanche_dataset(TensorDataset(x, y))]).train_stream[0])
    return model.weight.detach().squeeze(), joint_least_squares(tasks)


def test_weighed_by_samples_the_laplace_approximation_is_exact_for_experiences_of_unequal_size():
    found, joint = learn_unequal(EWCPlugin(1.0, weigh_by_samples=True))
    torch.testing.assert_close(found, joint, rtol=1e-4, atol=1e-4)
    unweighed, _ = learn_unequal(EWCPlugin(1.0))
    assert (unweighed - joint).norm() > 0.05


def test_normalised_fishers_count_alike():
    plugin = EWCPlugin(1.0, "separate", normalise=True)
    plain = EWCPlugin(1.0, "separate")
    torch.manual_seed(0)
    learn(Net(), stream([[0, 1]] * 2), plugin, plain)
    for normalised, raw in zip(plugin.importances, plain.importances, strict=True):
        assert torch.cat([f.flatten() for f in normalised.values()]).mean().item() == pytest.approx(1)
        ratio = normalised["fc.weight"] / raw["fc.weight"]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))


def test_a_fisher_of_zero_is_not_normalised():
    class Zero(Net):
        def forward(self, x):
            return 0 * super().forward(x)

    plugin = EWCPlugin(1.0, normalise=True)
    with pytest.warns(UserWarning, match="every importance is 0 after experience 0"):
        learn(Zero(), stream([[0, 1]]), plugin)
    assert all(torch.equal(f, torch.zeros_like(f)) for f in plugin.importances.values())


@pytest.mark.parametrize("kind", PLUGINS)
@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("fc.*", {"0.weight", "0.bias", "1.weight", "1.bias"}),
        (nn.BatchNorm1d, {"0.weight", "0.bias", "fc.weight", "fc.bias"}),
        (["*.bias", nn.BatchNorm1d], {"0.weight", "fc.weight"}),
    ],
)
def test_parameters_are_left_out_by_name_or_kind(kind, exclude, left):
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    model.add_module("fc", nn.Linear(5, 2))
    plugin = PLUGINS[kind](exclude=exclude)
    learn(model, stream([[0, 1]]), plugin)
    assert anchors_of(plugin).keys() == left


def test_what_is_to_be_left_out_and_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"exclude='head.\*' is no parameter of the model; it has body.weight"):
        learn(Net(), stream([[0, 1]]), EWCPlugin(1.0, exclude="head.*"))


@pytest.mark.parametrize("kind", PLUGINS)
@pytest.mark.parametrize(
    ("exclude", "freeze"), [("*", False), (nn.Module, False), ([nn.Linear], False), ("fc.*", True)]
)
def test_where_nothing_is_left_to_hold_it_is_refused_before_training(kind, exclude, freeze):
    model = Net()
    model.body.requires_grad_(not freeze)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"nothing was trained: exclude leaves out every parameter .* nothing to hold"):
        learn(model, stream([[0, 1]]), PLUGINS[kind](exclude=exclude))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_importance_goes_on_on_unlabelled_data_in_deployment():
    """Observed in parts, it is what it would be measured on all at once; anchors stay."""
    first, second = stream([[0, 1]] * 2)
    plugin = MASPlugin(1.0)
    model = learn(Net(), [first], plugin).model
    anchors = dict(plugin.anchors)
    x = torch.randn(30, 6)
    plugin.observe(model, TensorDataset(x[:7]))
    plugin.observe(model, TensorDataset(x[7:]))
    seen = torch.cat([torch.stack([first.dataset[i][0] for i in range(len(first.dataset))]), x])
    expected = mas_importance(model, TensorDataset(seen))
    for name, value in expected.items():
        torch.testing.assert_close(plugin.importances[name], value)
        assert torch.equal(plugin.anchors[name], anchors[name])
    with pytest.raises(ValueError, match="before the first experience has ended"):
        MASPlugin(1.0).observe(model, TensorDataset(x))
    assert second is not None


def test_local_is_half_of_global_on_one_linear_layer():
    """d ||W a||^2 / d w_ij = 2 f_i a_j; Hebb's product is f_i a_j."""
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3), ConcatDataset([TensorDataset(torch.randn(9, 4))])
    local, whole = (mas_importance(model, data, variant) for variant in ("local", "global"))
    for name in whole:
        torch.testing.assert_close(2 * local[name], whole[name])


def test_experiences_count_alike_or_by_their_samples_but_not_both():
    with pytest.raises(ValueError, match="choose one of them"):
        EWCPlugin(1.0, normalise=True, weigh_by_samples=True)


# --- what a strategy does with the penalty ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (lambda: EWCPlugin(3.0), "ewc_lambda", 3.0),
        (lambda: MASPlugin(3.0), "mas_lambda", 3.0),
        (lambda: L2Plugin(3.0), "l2_lambda", 3.0),
        (lambda: SIPlugin(3.0), "c", 3.0),
    ],
)
def test_a_strength_that_is_set_later_is_that_of_the_penalty(make, name, value):
    plugin = make()
    assert getattr(plugin, name) == value
    experiences = stream([[0, 1]] * 2)
    strategy = learn(mlp(), experiences[:1], plugin)
    for p in strategy.model.parameters():
        p.data += 1
    before = plugin.penalty(strategy.model).item()
    setattr(plugin, name, 6.0)
    assert plugin.penalty(strategy.model).item() == pytest.approx(2 * before)
    setattr(plugin, name, 0)
    assert plugin.penalty(strategy.model).item() == 0 < before
    with pytest.raises(ValueError, match=f"{name} must be at least 0; got -1"):
        setattr(plugin, name, -1)


class OwnLoop(SupervisedTemplate):
    """Passes a loss back by itself, and tells nobody."""

    def training_epoch(self, **kwargs):
        for columns in self.dataloader:
            self.mbatch = columns
            self._unpack_minibatch()
            self.optimizer.zero_grad()
            self._criterion(self.forward(), self.mb_y).backward()
            self.optimizer.step()


class OwnVariable(SupervisedTemplate):
    """Calls all hooks, and passes back something else than strategy.loss."""

    def backward(self):
        self._criterion(self.mb_output, self.mb_y).backward()


@pytest.mark.parametrize("template", [OwnLoop, OwnVariable])
@pytest.mark.parametrize("make", [EWCPlugin, MASPlugin, L2Plugin])
def test_a_penalty_that_is_never_passed_back_is_noticed(template, make):
    with pytest.warns(UserWarning, match="its penalty has had no effect in experience 1: what was passed back is not"):
        learn(mlp(), stream([[0, 1]] * 2), make(1.0), template=template)


def test_a_proximal_step_that_is_never_taken_is_noticed():
    with pytest.warns(UserWarning, match="no effect in experience 1: the steps are not those of strategy.optimizer"):
        learn(mlp(), stream([[0, 1]] * 2), EWCPlugin(1.0, penalty_step="proximal"), template=OwnLoop)


@pytest.mark.filterwarnings("error:.*had no effect")
@pytest.mark.parametrize("options", [{}, {"penalty_step": "proximal"}])
def test_a_penalty_that_acts_is_not_warned_of(options):
    learn(mlp(), stream([[0, 1]] * 3), EWCPlugin(1.0, **options), MASPlugin(0, **options))


def test_an_optimiser_that_does_not_tell_its_steps_is_named():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def __getattr__(self, name):
            if name == "register_step_post_hook":
                raise AttributeError(name)
            return getattr(self.optimizer, name)

    strategy = learn(mlp(), [], SIPlugin(1.0))
    strategy.optimizer = Wrapper(strategy.optimizer)
    with pytest.raises(ValueError, match="SIPlugin has to be told of every step, and Wrapper does not tell"):
        strategy.train(stream([[0, 1]])[0])


def test_in_half_precision_a_small_importance_counts():
    """Importance 1e-6 and a distance of 1e-2: their product, and the square, are 0 in float16."""
    plugin = L2Plugin(2e4)
    model = nn.Linear(4, 1, bias=False).half()
    with torch.no_grad():
        model.weight.fill_(0.5)
    plugin.importances = {"weight": torch.full((1, 4), 1e-6)}
    plugin.anchors = {"weight": torch.full((1, 4), 0.49)}
    penalty = plugin.penalty(model)
    penalty.backward()
    distance = 0.5 - 0.49
    assert penalty.item() == pytest.approx(1e4 * 4 * 1e-6 * distance**2, rel=1e-3)
    assert model.weight.grad.flatten()[0].item() == pytest.approx(2e4 * 1e-6 * distance, rel=1e-2)


def test_the_strategy_evaluates_while_it_is_measured():
    """A forward pass that changes inputs in training alone: importances are of the data as in evaluation."""

    class Flipping(SupervisedTemplate):
        def forward(self):
            return self.model(-3 * self.mb_x if self.is_training else self.mb_x)

    experience = stream([[0, 1]])[0]
    for plugin, measure in (
        (EWCPlugin(1.0), lambda model: diagonal_fisher(model, experience.dataset)),
        (MASPlugin(1.0), lambda model: mas_importance(model, experience.dataset)),
    ):
        strategy = learn(mlp(), [experience], plugin, template=Flipping)
        for name, importance in measure(strategy.model).items():
            torch.testing.assert_close(plugin.importances[name], importance)


def test_l2_holds_all_that_had_a_gradient_in_the_experience():
    """Also where the last step had none: gradients that are cleared behind it, a layer that it left out."""

    class Clears(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            strategy.optimizer.zero_grad()

    plugin = L2Plugin(1.0)
    learn(mlp(), stream([[0, 1]]), plugin, Clears())
    assert len(plugin.importances) == 4
    with pytest.warns(UserWarning, match="L2Plugin: no gradient was seen in experience 0"):
        learn(mlp(), stream([[0, 1]]), L2Plugin(1.0), Clears(), template=OwnLoopThatClears)


class OwnLoopThatClears(OwnLoop):
    def training_epoch(self, **kwargs):
        super().training_epoch(**kwargs)
        self.optimizer.zero_grad()
