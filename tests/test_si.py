"""Synaptic intelligence against plain loops that follow the paper's equations 4 and 5, step by step."""

import copy
from itertools import islice

import pytest
import torch
from avalanche.models import as_multitask
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.nn.functional import cross_entropy

from engrams.strategies.kept import restore_within, state_within
from engrams.strategies.si import SIPlugin
from tests.test_baselines import Watch
from tests.test_ewc import learn, mlp, quiet, stream
from tests.test_penalties import Net, online

RATE = 0.05  # of ``learn``
C, XI = 2.0, 0.01


def batched(whole, size):
    """The whole in parts of ``size``, in order."""
    rest = iter(whole)
    return list(iter(lambda: list(islice(rest, size)), []))


def by_hand(plain, seen, clamped, step, loss_of, xi=XI, uphill=None):
    """Trains a network as the equations have it, one experience the wrong way; returns the importances by name."""
    weights = dict(plain.named_parameters())
    omega, stars = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for experience, minibatches in enumerate(seen):
        start = {name: w.detach().clone() for name, w in weights.items()}
        path = {name: torch.zeros_like(w) for name, w in weights.items()}
        way = -1 if experience == uphill else 1
        for x, y, *_ in minibatches:
            gradients = torch.autograd.grad(loss_of(experience, x, y), list(weights.values()), allow_unused=True)
            with torch.no_grad():
                for (name, w), g in zip(weights.items(), gradients, strict=True):
                    g = torch.zeros_like(w) if g is None else g
                    before = w.clone()
                    if step == "gradient":
                        w -= way * RATE * (g + 2 * C * omega[name] * (w - stars[name]))
                    else:
                        h = RATE * 2 * C * omega[name]
                        w.copy_((w - way * RATE * g + h * stars[name]) / (1 + h))
                    path[name] += -g * (w - before)
        for name, w in weights.items():
            share = path[name] / ((w.detach() - start[name]) ** 2 + xi)
            omega[name] = omega[name] + share.relu() if clamped == "experience" else (omega[name] + share).relu()
            stars[name] = w.detach().clone()
    return omega


class Uphill(SupervisedPlugin):
    """Turns every gradient round in the second experience, so that it does harm."""

    def before_update(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter == 1:
            for p in strategy.model.parameters():
                p.grad.neg_()


@pytest.mark.parametrize("clamped", ["sum", "experience"])
@pytest.mark.parametrize("step", ["gradient", "proximal"])
def test_the_path_and_the_penalty_are_the_papers(clamped, step):
    met, start = Watch(), mlp(4)
    plain = copy.deepcopy(start)
    plugin = SIPlugin(C, XI, clamped, penalty_step=step)
    learn(start, stream([[0, 1], [2, 3], [0, 1]]), met, plugin, Uphill())

    omega = by_hand(plain, met.seen, clamped, step, lambda _, x, y: cross_entropy(plain(x), y), uphill=1)

    trained = dict(start.named_parameters())
    for name, w in plain.named_parameters():
        torch.testing.assert_close(trained[name], w)
        torch.testing.assert_close(plugin.importances[name], omega[name], rtol=1e-4, atol=1e-6)
    assert max(importance.max() for importance in plugin.importances.values()) > 0.1


def test_harm_is_no_importance():
    """``experience`` leaves it out, ``sum`` takes it off what was there."""
    found = {}
    for clamped in ("experience", "sum"):
        torch.manual_seed(0)
        found[clamped] = []
        for count in (1, 2):
            experiences = stream([[0, 1], [0, 1]])[:count]
            torch.manual_seed(0)
            plugin = SIPlugin(C, XI, clamped)
            learn(mlp(4), experiences, plugin, Uphill())
            found[clamped].append(plugin.importances)
    before, after = found["experience"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = found["sum"]
    assert all(((after[name] >= 0) & (after[name] <= before[name])).all() for name in before)
    assert all(after[name].sum() < before[name].sum() for name in before)


def test_on_a_quadratic_the_share_is_what_the_loss_fell_by():
    """Small steps down (1/2) a theta^2: w is the fall of the loss, D the way, so that Omega is their quotient."""

    class Parabola(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.theta.expand(len(x), 2)

    curvature = torch.tensor([1.0, 3.0])
    model, plugin = Parabola(), SIPlugin(1.0, xi=1e-3)
    SupervisedTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
        criterion=lambda outputs, _: 0.5 * (curvature * outputs[0] ** 2).sum(),
        train_mb_size=10,
        train_epochs=100,
        plugins=[plugin],
        evaluator=quiet(),
    ).train(stream([[0, 1]])[0])
    end = model.theta.detach()
    fall = 0.5 * curvature * (1 - end**2)
    torch.testing.assert_close(plugin.importances["theta"], fall / ((1 - end) ** 2 + 1e-3), rtol=3e-3, atol=0)


def test_several_heads_with_batch_norm():
    """Another task's head has no gradient, no path, and stays; batch norm's parameters are held as all others."""
    torch.manual_seed(5)
    body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.classifier = copy.deepcopy(body), nn.Linear(5, 2)

        def forward(self, x):
            return self.classifier(self.features(x))

    heads, met = {}, Watch()

    class Heads(SupervisedPlugin):
        """Keeps how each begins."""

        def before_training_exp(self, strategy, **kwargs):
            task = strategy.experience.task_labels[0]
            heads[task] = copy.deepcopy(strategy.model.classifier.classifiers[str(task)].classifier)

    model, plugin = as_multitask(Network(), "classifier"), SIPlugin(C, XI)
    learn(model, stream([[0, 1]] * 3, task_incremental=True), Heads(), met, plugin)

    plain = nn.ModuleDict({"features": copy.deepcopy(body), "heads": nn.ModuleList(heads[task] for task in range(3))})
    plain.train()
    omega = by_hand(
        plain,
        met.seen,
        "sum",
        "gradient",
        lambda task, x, y: cross_entropy(plain["heads"][task](plain["features"](x)), y),
    )
    trained = dict(model.named_parameters())
    for name, w in plain.named_parameters():
        here = name
        if name.startswith("heads"):
            _, task, kind = name.split(".")
            here = f"classifier.classifiers.{task}.classifier.{kind}"
        here = here if here in trained else f"model.{here}"
        torch.testing.assert_close(trained[here], w)
        torch.testing.assert_close(plugin.importances[here], omega[name], rtol=1e-4, atol=1e-6)


class EveryOther(SupervisedTemplate):
    """A step of the optimiser for two minibatches."""

    def optimizer_step(self):
        self.steps = self.clock.train_exp_iterations % 2 == 1
        if self.steps:
            self.optimizer.step()

    def make_optimizer(self, **kwargs):
        super().make_optimizer(**kwargs)
        clear, self.steps = type(self.optimizer).zero_grad, True
        self.optimizer.zero_grad = lambda: self.steps and clear(self.optimizer)


def test_gradients_that_are_accumulated_have_the_path_of_the_real_steps():
    model, met, plugin = mlp(4), Watch(), SIPlugin(C, XI, penalty_step="proximal")
    plain = copy.deepcopy(model)
    strategy = EveryOther(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        plugins=[met, plugin],
        evaluator=quiet(),
    )
    for experience in stream([[0, 1], [2, 3]]):
        strategy.train(experience)
    pairs = [
        [[torch.cat(column) for column in zip(*two, strict=True)] for two in batched(seen, 2)] for seen in met.seen
    ]
    omega = by_hand(plain, pairs, "sum", "proximal", lambda _, x, y: 2 * cross_entropy(plain(x), y))
    for name, importance in plugin.importances.items():
        torch.testing.assert_close(importance, omega[name], rtol=1e-4, atol=1e-6)
    assert max(importance.max() for importance in plugin.importances.values()) > 0.1


@pytest.mark.parametrize("size", [7, 20])
def test_an_experience_in_pieces_is_one_path(size):
    """D is of the whole of it: the shares of the pieces would sum up to more."""
    model, met, plugin = Net(), Watch(), SIPlugin(C, 1e-3)
    plain = copy.deepcopy(model)
    learn(model, online(size), met, plugin)
    count = len(met.seen) // 2
    whole = [[minibatch for piece in pieces for minibatch in piece] for pieces in batched(met.seen, count)]
    omega = by_hand(plain, whole, "sum", "gradient", lambda _, x, y: cross_entropy(plain(x), y), xi=1e-3)
    for name, importance in plugin.importances.items():
        torch.testing.assert_close(importance, omega[name], rtol=1e-3, atol=1e-5)


def test_units_that_come_with_a_later_piece_begin_their_path_there():
    model, plugin = Net(), SIPlugin(C, XI)
    start, path = torch.zeros(4, 5), torch.zeros(4, 5)

    class Grows(SupervisedPlugin):
        """Has two more classes in the second piece, and sums up the path of the last layer."""

        def before_training_exp(self, strategy, **kwargs):
            old = model.fc
            if strategy.clock.train_exp_counter == 1:
                model.fc = nn.Linear(5, 4)
                with torch.no_grad():
                    model.fc.weight[:2], model.fc.bias[:2] = old.weight, old.bias
                strategy.optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
                start[2:] = model.fc.weight[2:].detach()
            else:
                start[:2] = old.weight.detach()

        def before_update(self, strategy, **kwargs):
            self.gradient, self.before = model.fc.weight.grad.clone(), model.fc.weight.detach().clone()

        def after_update(self, strategy, **kwargs):
            path[: len(self.before)] -= self.gradient * (model.fc.weight.detach() - self.before)

    learn(model, online(20, experiences=1), Grows(), plugin)
    assert (path[2:] > 0).any()
    share = path / ((model.fc.weight.detach() - start) ** 2 + XI)
    torch.testing.assert_close(plugin.importances["fc.weight"], share.relu(), rtol=1e-4, atol=1e-6)


def test_what_is_frozen_in_a_later_piece_keeps_its_path():
    model, plugin, paths = Net(), SIPlugin(C, XI), []

    class Freezes(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter == 1:
                model.body.weight.requires_grad_(False)
                paths.append(plugin.state_dict_within()["path"]["body.weight"])

    start = model.body.weight.detach().clone()
    learn(model, online(20, experiences=1), Freezes(), plugin)
    share = paths[0] / ((model.body.weight.detach() - start) ** 2 + XI)
    torch.testing.assert_close(plugin.importances["body.weight"], share.relu())


def test_it_goes_on_from_the_middle_of_an_experience():
    class Exchange(SupervisedPlugin):
        """Puts a plugin that was given the other's state in its place, once, after three steps."""

        def after_training_iteration(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 3 and strategy.clock.train_exp_counter == 1:
                fresh = SIPlugin(C, XI)
                fresh.load_state_dict(plugins[0].state_dict())
                fresh.before_training_exp(strategy)
                restore_within(fresh, state_within(plugins[0]))
                strategy.plugins[strategy.plugins.index(plugins[0])] = fresh
                plugins.append(fresh)

    found = []
    for more in ([], [Exchange()]):
        torch.manual_seed(1)
        plugins = [SIPlugin(C, XI)]
        learn(mlp(), stream([[0, 1]] * 3), plugins[0], *more)
        found.append(plugins[-1].importances)
    assert len(plugins) == 2
    for name, importance in found[0].items():
        assert torch.equal(importance, found[1][name])


def test_what_is_excluded_or_frozen_has_no_path():
    model, plugin = Net(), SIPlugin(C, XI, exclude="fc.*")
    model.body.bias.requires_grad_(False)
    learn(model, stream([[0, 1]]), plugin)
    assert plugin.importances.keys() == {"body.weight"}


def test_half_precision_is_summed_in_full():
    class Half(Net):
        def forward(self, x):
            return super().forward(x.bfloat16())

    plugin = SIPlugin(C, XI)
    learn(Half().bfloat16(), stream([[0, 1]] * 2), plugin)
    assert {importance.dtype for importance in plugin.importances.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"c": -1.0}, "c must be at least 0; got -1.0"),
        ({"c": float("nan")}, "c must be a finite number"),
        ({"c": 1.0, "xi": 0.0}, "xi must be above 0; got 0.0"),
        ({"c": 1.0, "xi": float("inf")}, "xi must be a finite number"),
        ({"c": 1.0, "clamped": "never"}, "clamped must be one of sum, experience; got 'never'"),
    ],
)
def test_arguments_outside_their_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SIPlugin(**arguments)
