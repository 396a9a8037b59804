"""EWC and MAS as the code of Chaudhry et al. 2019 has them, against plain loops that follow that code line by line."""

import copy

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.models import IncrementalClassifier, as_multitask
from avalanche.training.plugins import SupervisedPlugin
from torch import nn
from torch.nn.functional import cross_entropy

from engrams.strategies.chaudhry2019 import ChaudhryEWCPlugin, ChaudhryMASPlugin
from tests.test_baselines import Watch
from tests.test_ewc import learn, mlp, stream

RATE = 0.05  # of ``learn``


def step(weights, loss, penalty):
    gradients = torch.autograd.grad(loss + penalty, weights)
    with torch.no_grad():
        for w, g in zip(weights, gradients, strict=True):
            w -= RATE * g


def pulled(weights, stars, importances, strength):
    return strength * sum(((w - star) ** 2 * f).sum() for w, star, f in zip(weights, stars, importances, strict=True))


def released_ewc(plain, seen, strength, every, loss_of):
    """Trains a network as that code does; returns the importances, in the order of its parameters."""
    weights = list(plain.parameters())
    running, summed, normalised, stars = ([torch.zeros_like(w) for w in weights] for _ in range(4))
    for experience, minibatches in enumerate(seen):
        for iteration, (x, y, *_) in enumerate(minibatches):
            if (iteration + 1) % every == 0:
                running = [0.1 * r + 0.9 * s / every for r, s in zip(running, summed, strict=True)]
                summed = [torch.zeros_like(w) for w in weights]
            loss = loss_of(experience, x, y)
            gradients = torch.autograd.grad(loss, weights, retain_graph=True)
            summed = [s + g**2 for s, g in zip(summed, gradients, strict=True)]
            step(weights, loss, pulled(weights, stars, normalised, strength))
        low, high = min(r.min() for r in running), max(r.max() for r in running)
        normalised = [(r - low) / (high - low) for r in running]
        summed, stars = ([torch.zeros_like(w) for w in weights], [w.detach().clone() for w in weights])
    return normalised


@pytest.mark.parametrize("every", [1, 3])
def test_ewc_is_what_the_released_code_computes(every):
    strength, met = 2.0, Watch()
    start = mlp(4)
    plain = copy.deepcopy(start)
    plugin = ChaudhryEWCPlugin(strength, every)
    learn(start, stream([[0, 1], [2, 3], [0, 1]]), met, plugin)

    normalised = released_ewc(plain, met.seen, strength, every, lambda experience, x, y: cross_entropy(plain(x), y))

    for (name, w), f in zip(plain.named_parameters(), normalised, strict=True):
        torch.testing.assert_close(dict(start.named_parameters())[name], w)
        torch.testing.assert_close(plugin.importances[name], f, rtol=1e-4, atol=1e-6)
    assert max(f.max() for f in plugin.importances.values()) == 1
    assert min(f.min() for f in plugin.importances.values()) == 0


def test_mas_is_what_the_released_code_computes():
    strength, met = 2.0, Watch()
    start = mlp(4)
    plain = copy.deepcopy(start)
    plugin = ChaudhryMASPlugin(strength)
    experiences = list(stream([[0, 1], [2, 3], [0, 1]]))
    learn(start, experiences, met, plugin)

    weights = list(plain.parameters())
    omega, stars = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for minibatches, experience in zip(met.seen, experiences, strict=True):
        for x, y, *_ in minibatches:
            step(weights, cross_entropy(plain(x), y), pulled(weights, stars, omega, strength))
        images = torch.stack([sample[0] for sample in experience.dataset])
        omega = [torch.zeros_like(w) for w in weights]
        for ten in images.split(10):
            gradients = torch.autograd.grad((plain(ten) ** 2).sum(), weights)
            omega = [o + g.abs() / len(images) for o, g in zip(omega, gradients, strict=True)]
        stars = [w.detach().clone() for w in weights]

    for (name, w), o in zip(plain.named_parameters(), omega, strict=True):
        torch.testing.assert_close(dict(start.named_parameters())[name], w)
        torch.testing.assert_close(plugin.importances[name], o)


def test_of_an_old_head_a_tenth_is_left_after_each_update():
    """Five updates an experience of 250 steps and ``every`` 50, so that 1e-5 is left of what came before."""
    plugin = ChaudhryEWCPlugin(1.0, every=4)
    experiences = stream([[0, 1]] * 3, task_incremental=True)
    strategy = learn(as_multitask(mlp(), "classifier"), experiences[:2], plugin)
    before = {name: f for name, f in plugin.state_dict()["running"].items() if "classifiers.0" in name}
    assert before
    strategy.train(experiences[2])  # two epochs of four minibatches: two updates
    for name, f in before.items():
        torch.testing.assert_close(plugin.state_dict()["running"][name], 0.1**2 * f)


def test_a_head_a_task_is_the_released_codes_masked_layer():
    """With batch norm, whose parameters are held too; two outputs are of no task."""
    torch.manual_seed(5)
    tasks, met, heads = 3, Watch(), {}
    body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())

    class Network(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.features, self.classifier = copy.deepcopy(body), nn.Linear(5, outputs)

        def forward(self, x):
            return self.classifier(self.features(x))

    class Heads(SupervisedPlugin):
        """Keeps how each begins."""

        def before_training_exp(self, strategy, **kwargs):
            task = strategy.experience.task_labels[0]
            head = strategy.model.classifier.classifiers[str(task)].classifier
            heads[task] = head.weight.detach().clone(), head.bias.detach().clone()

    plugin = ChaudhryEWCPlugin(2.0, every=3)
    ours = as_multitask(Network(2), "classifier")
    learn(ours, stream([[0, 1]] * tasks, task_incremental=True), met, Heads(), plugin)

    plain = Network(2 * tasks + 2)
    with torch.no_grad():
        for task, (weight, bias) in heads.items():
            plain.classifier.weight[2 * task : 2 * task + 2] = weight
            plain.classifier.bias[2 * task : 2 * task + 2] = bias

    def masked(task, x, y):
        mask = torch.full((2 * tasks + 2,), -1e32)
        mask[2 * task : 2 * task + 2] = 0
        return cross_entropy(plain(x) + mask, y + 2 * task)

    normalised = released_ewc(plain, met.seen, 2.0, 3, masked)
    found, fisher = dict(ours.named_parameters()), dict(zip(dict(plain.named_parameters()), normalised, strict=True))
    for name, w in plain.named_parameters():
        for task in range(tasks):
            of_head = name.startswith("classifier")
            mine = f"classifier.classifiers.{task}.{name}" if of_head else name
            mine = mine if mine in found else f"model.{name}"
            part = slice(2 * task, 2 * task + 2) if of_head else slice(None)
            torch.testing.assert_close(found[mine], w[part], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(plugin.importances[mine], fisher[name][part], rtol=1e-3, atol=1e-5)


def frozen(model):
    model.features[0].requires_grad_(False)


def another_head(model):
    model.head = nn.Linear(model.classifier.in_features, 2)
    model.classifier = nn.Sequential()
    model.forward = lambda x: model.head(model.features(x))


def smaller_head(model):
    model.classifier = nn.Linear(model.classifier.in_features, 2)


def fresh_head(model):
    model.classifier = nn.Linear(model.classifier.in_features, 3)


@pytest.mark.filterwarnings("ignore:ChaudhryEWCPlugin")
@pytest.mark.parametrize("change", [frozen, another_head, smaller_head, fresh_head])
def test_what_is_exchanged_or_frozen_is_followed(change):
    plugin, model, experiences = ChaudhryEWCPlugin(1.0, every=2), mlp(3), stream([[0, 1]] * 2)
    strategy = learn(model, experiences[:1], plugin)
    change(model)
    strategy.optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    begins = {}

    class Look(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            begins.update(plugin.state_dict()["running"] if not begins else {})

    strategy.plugins.append(Look())
    strategy.train(experiences[1])
    kept = {name for name, f in begins.items() if f.any()}
    assert ("classifier.weight" in kept) == (change is frozen)
    assert set(plugin.importances) == set(dict(model.named_parameters()))


def test_an_experience_that_comes_in_pieces_is_one():
    whole, pieces = ChaudhryEWCPlugin(1.0, every=5), ChaudhryEWCPlugin(1.0, every=5)
    experiences = stream([[0, 1]])
    learn(mlp(), experiences, whole)
    learn(mlp(), split_online_stream(experiences, experience_size=10, access_task_boundaries=True), pieces)
    assert any(f.any() for f in pieces.importances.values())
    assert pieces.consolidated == 1


def test_an_experience_without_an_update_is_said_to_hold_nothing():
    with pytest.warns(UserWarning, match="every importance is 0"):
        learn(mlp(), stream([[0, 1]]), ChaudhryEWCPlugin(1.0, every=50))


def test_a_state_comes_to_where_the_parameters_are():
    first, then = ChaudhryEWCPlugin(1.0, every=2), ChaudhryEWCPlugin(1.0, every=2)
    experiences = stream([[0, 1]] * 2)
    strategy = learn(mlp(), experiences[:1], first)
    state = first.state_dict()
    state["running"] = {name: f.double() for name, f in state["running"].items()}
    then.load_state_dict(state)
    strategy.plugins[strategy.plugins.index(first)] = then
    strategy.train(experiences[1])
    assert all(f.dtype == torch.float for f in then.importances.values())
    then.load_state_dict_within({name: then.state_dict()["running"] for name in ("running", "summed")} | {"steps": 1})
    assert {f.dtype for f in then.state_dict_within()["summed"].values()} == {torch.float}


def test_a_running_fisher_that_is_not_finite_is_named():
    plugin = ChaudhryEWCPlugin(1.0, every=2)
    strategy = learn(mlp(), stream([[0, 1]]), plugin)
    plugin._running["classifier.bias"][0] = float("inf")
    with pytest.raises(ValueError, match=r"the running Fisher of 'classifier.bias' is not finite"):
        plugin.importance(strategy)


def test_units_that_are_added_begin_with_nothing():
    model = mlp()
    model.classifier = IncrementalClassifier(model.classifier.in_features, 2)
    plugin = ChaudhryEWCPlugin(1.0, every=2)
    learn(model, stream([[0, 1], [2, 3]]), plugin)
    assert plugin.importances["classifier.classifier.weight"].shape == model.classifier.classifier.weight.shape


@pytest.mark.parametrize("arguments", [{"ewc_lambda": -1.0}, {"ewc_lambda": 1.0, "every": 0}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        ChaudhryEWCPlugin(**arguments)
