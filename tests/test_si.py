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

from engrams.strategies.si import SIPlugin
from tests.test_baselines import Watch
from tests.test_ewc import learn, mlp, quiet, stream
from tests.test_penalties import Net, online

pytestmark = pytest.mark.filterwarnings("error:.*something else than the optimiser's steps")

RATE = 0.05  # of ``learn``
C, XI = 2.0, 0.01


def batched(whole, size):
    """The whole in parts of ``size``, in order."""
    rest = iter(whole)
    return list(iter(lambda: list(islice(rest, size)), []))


def by_hand(plain, seen, clamped, step, loss_of, xi=XI, uphill=None, times=1):
    """Trains a network as the equations have it, one experience the wrong way; returns the importances by name."""
    weights = dict(plain.named_parameters())
    omega, stars = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for experience, minibatches in enumerate(seen):
        start = {name: w.detach().clone() for name, w in weights.items()}
        path = {name: torch.zeros_like(w) for name, w in weights.items()}
        way = times * (-1 if experience == uphill else 1)
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

    steps = True

    def optimizer_step(self):
        self.steps = self.clock.train_exp_iterations % 2 == 1
        if self.steps:
            self.optimizer.step()

    def make_optimizer(self, **kwargs):
        super().make_optimizer(**kwargs)
        clear = type(self.optimizer).zero_grad
        self.optimizer.zero_grad = lambda: self.steps and clear(self.optimizer, set_to_none=self.set_to_none)


class Scaled(SupervisedTemplate):
    """What mixed precision does: the loss is scaled up, and a step with an infinite gradient is left out."""

    def make_optimizer(self, **kwargs):
        super().make_optimizer(**kwargs)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def backward(self):
        self.scaler.scale(self.loss).backward()

    def optimizer_step(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()


def assert_held(plugin, omega):
    for name, importance in plugin.importances.items():
        torch.testing.assert_close(importance, omega[name], rtol=1e-4, atol=1e-6)
    assert max(importance.max() for importance in plugin.importances.values()) > 0.1


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("step", ["gradient", "proximal"])
def test_gradients_that_are_accumulated_have_the_path_of_the_real_steps(monkeypatch, step, set_to_none):
    """Each lowers the mean loss of two minibatches, by twice the step that one would take."""
    monkeypatch.setattr(EveryOther, "set_to_none", set_to_none, raising=False)
    model, met, plugin = mlp(4), Watch(), SIPlugin(C, XI, penalty_step=step)
    plain = copy.deepcopy(model)
    learn(model, stream([[0, 1], [2, 3]]), met, plugin, template=EveryOther)
    pairs = [
        [[torch.cat(column) for column in zip(*two, strict=True)] for two in batched(seen, 2)] for seen in met.seen
    ]
    assert_held(plugin, by_hand(plain, pairs, "sum", step, lambda _, x, y: cross_entropy(plain(x), y), times=2))


@pytest.mark.parametrize("step", ["gradient", "proximal"])
def test_a_loss_that_is_scaled_has_the_same_path(step):
    model, met, plugin = mlp(4), Watch(), SIPlugin(C, XI, penalty_step=step)
    plain = copy.deepcopy(model)
    learn(model, stream([[0, 1], [2, 3]]), met, plugin, template=Scaled)
    assert_held(plugin, by_hand(plain, met.seen, "sum", step, lambda _, x, y: cross_entropy(plain(x), y)))


class Fused(Scaled):
    """By the optimiser itself, whose step is called all the same."""

    def make_optimizer(self, **kwargs):
        super().make_optimizer(**kwargs)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE, fused=True)


@pytest.mark.parametrize("template", [Scaled, Fused])
def test_a_step_that_is_left_out_counts_for_nothing(template):
    class Spoils(SupervisedPlugin):
        """Makes a gradient infinite, in the second minibatch of each experience."""

        def after_backward(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 1:
                strategy.model.classifier.bias.grad[0] = torch.inf

    model, met, plugin = mlp(4), Watch(), SIPlugin(C, XI)
    plain = copy.deepcopy(model)
    learn(model, stream([[0, 1], [2, 3]]), Spoils(), met, plugin, template=template)
    seen = [[minibatch for n, minibatch in enumerate(minibatches) if n != 1] for minibatches in met.seen]
    assert_held(plugin, by_hand(plain, seen, "sum", "gradient", lambda _, x, y: cross_entropy(plain(x), y)))


def test_a_loss_that_is_multiplied_by_nothing_has_no_path():
    class WarmsUp(SupervisedPlugin):
        """The loss counts from the second epoch on."""

        def before_backward(self, strategy, **kwargs):
            strategy.loss = strategy.loss * (strategy.clock.train_exp_epochs > 0)

    found = []
    for plugins, epochs in (([], 1), ([WarmsUp()], 2)):
        torch.manual_seed(0)
        model, plugin = mlp(), SIPlugin(C, XI)
        learn(model, stream([[0, 1]]), plugin, *plugins, train_epochs=epochs, train_mb_size=40)
        found.append(plugin.importances)
    for name, importance in found[0].items():
        torch.testing.assert_close(importance, found[1][name])


class ClearsLate(SupervisedTemplate):
    """Forgets old gradients right before the backward pass."""

    def make_optimizer(self, **kwargs):
        super().make_optimizer(**kwargs)
        clear = type(self.optimizer).zero_grad
        self.optimizer.zero_grad = lambda: None
        self.clear = lambda: clear(self.optimizer)

    def backward(self):
        self.clear()
        super().backward()


def test_gradients_may_be_cleared_right_before_the_backward_pass():
    model, met, plugin = mlp(4), Watch(), SIPlugin(C, XI)
    plain = copy.deepcopy(model)
    learn(model, stream([[0, 1], [2, 3]]), met, plugin, template=ClearsLate)
    assert_held(plugin, by_hand(plain, met.seen, "sum", "gradient", lambda _, x, y: cross_entropy(plain(x), y)))


OPTIMISERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9, nesterov=True),
    "decay": lambda p: torch.optim.SGD(p, lr=RATE, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_path_is_that_of_any_optimiser(optimiser):
    """The loss's gradient times what the step really was; of one experience, in which nothing is held."""
    model, plugin, path = mlp(), SIPlugin(C, XI), {}

    class Sums(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            gradients = torch.autograd.grad(strategy.loss, list(model.parameters()), retain_graph=True)
            values = [p.detach().clone() for p in model.parameters()]
            self.before = dict(zip(dict(model.named_parameters()), zip(gradients, values, strict=True), strict=True))

        def after_update(self, strategy, **kwargs):
            for name, p in model.named_parameters():
                gradient, value = self.before[name]
                path[name] = path.get(name, 0) - gradient * (p.detach() - value)

    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    strategy = learn(model, [], Sums(), plugin, train_epochs=2)
    strategy.optimizer = OPTIMISERS[optimiser](model.parameters())
    strategy.train(stream([[0, 1]])[0])
    way = {name: p.detach() - start[name] for name, p in model.named_parameters()}
    assert_held(plugin, {name: (path[name] / (way[name] ** 2 + XI)).relu() for name in path})


def test_what_is_trained_later_in_an_experience_has_its_path_from_there():
    class WarmsUp(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            strategy.model.body.requires_grad_(strategy.clock.train_exp_epochs > 0)

    model, plugin = Net(), SIPlugin(C, XI)
    learn(model, stream([[0, 1]]), WarmsUp(), plugin)
    assert plugin.importances.keys() == dict(model.named_parameters()).keys()
    assert plugin.importances["body.weight"].any()


def test_parameters_that_are_set_back_are_named():
    class BestEpoch(SupervisedPlugin):
        """Goes back to the end of the first epoch."""

        def after_training_epoch(self, strategy, **kwargs):
            if strategy.clock.train_exp_epochs == 0:
                self.best = copy.deepcopy(strategy.model.state_dict())
            else:
                strategy.model.load_state_dict(self.best)

    with pytest.warns(
        UserWarning, match=r"something else than .* moved 4 of 4 parameters \('body.weight', .* in exper"
    ):
        learn(Net(), stream([[0, 1]]), BestEpoch(), SIPlugin(C, XI))


def test_an_experience_without_a_step_is_said_to_leave_nothing():
    class Own(SupervisedTemplate):
        """A loss of its own, which no plugin sees."""

        def backward(self):
            self.criterion().backward()

    plugin = SIPlugin(C, XI)
    with pytest.warns(UserWarning, match="no gradient of the strategy's loss was seen in experience 0: nothing"):
        learn(mlp(), stream([[0, 1]]), plugin, template=Own)
    assert plugin.importances == {}


def test_an_optimiser_with_several_gradients_a_step_is_refused():
    strategy = learn(mlp(), [], SIPlugin(C, XI))
    strategy.optimizer = torch.optim.LBFGS(strategy.model.parameters())
    with pytest.raises(ValueError, match="SIPlugin cannot work here, and nothing was trained: LBFGS takes several"):
        strategy.train(stream([[0, 1]])[0])


def test_a_path_that_is_not_finite_is_refused():
    class Spoils(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            strategy.loss = strategy.loss + 0 * strategy.model.fc.bias.sum() * torch.inf

        def before_update(self, strategy, **kwargs):
            strategy.model.fc.bias.grad.zero_()

    with pytest.raises(ValueError, match=r"the path of 'fc.bias' is not finite: lower the learning rate"):
        learn(Net(), stream([[0, 1]]), SIPlugin(C, XI), Spoils())


@pytest.mark.parametrize(("size", "every"), [(7, None), (20, None), (20, 40)])
def test_an_experience_in_pieces_is_one_path(size, every):
    """D is of the whole of it: the shares of the pieces would sum up to more."""
    model, met, plugin = Net(), Watch(), SIPlugin(C, 1e-3, consolidate_every=every)
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


def test_a_layer_that_is_exchanged_within_an_experience_begins_afresh():
    model, plugin = Net(), SIPlugin(C, XI)

    class Exchanges(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter == 1:
                model.fc = nn.Linear(5, 2)
                strategy.optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
                self.plain = copy.deepcopy(model)

    exchanges, met = Exchanges(), Watch()
    learn(model, online(20, experiences=1), exchanges, met, plugin)
    omega = by_hand(
        exchanges.plain, met.seen[1:], "sum", "gradient", lambda _, x, y: cross_entropy(exchanges.plain(x), y)
    )
    torch.testing.assert_close(plugin.importances["fc.weight"], omega["fc.weight"], rtol=1e-4, atol=1e-6)


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


def test_what_is_excluded_or_frozen_has_no_path():
    class Look(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            paths.append(plugin.state_dict_within()["path"].keys())

    model, plugin, paths = Net(), SIPlugin(C, XI, exclude="fc.*"), []
    model.body.bias.requires_grad_(False)
    learn(model, stream([[0, 1]]), plugin, Look())
    assert plugin.importances.keys() == {"body.weight"}
    assert paths == [{"body.weight"}] * 2


def test_half_precision_is_summed_in_full():
    class Half(Net):
        def forward(self, x):
            return super().forward(x.bfloat16())

    model, plugin, paths = Half().bfloat16(), SIPlugin(C, XI), []

    class Sums(SupervisedPlugin):
        """The steps of a layer, each as float64 has it."""

        def before_update(self, strategy, **kwargs):
            self.gradient, self.value = model.fc.weight.grad.double(), model.fc.weight.detach().double()

        def after_update(self, strategy, **kwargs):
            paths.append(-self.gradient * (model.fc.weight.detach().double() - self.value))

    start = model.fc.weight.detach().double()
    learn(model, stream([[0, 1]]), Sums(), plugin)
    omega = sum(paths) / ((model.fc.weight.detach().double() - start) ** 2 + XI)
    assert plugin.importances["fc.weight"].dtype == torch.float32
    torch.testing.assert_close(plugin.importances["fc.weight"].double(), omega.relu(), rtol=1e-4, atol=1e-7)


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


def test_a_second_loss_that_is_passed_back_first_is_no_accumulation():
    """The gradient is the sum of both in every step, and the path that of the sum: no factor grows."""

    class Another(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            sum(p.square().sum() for p in strategy.model.parameters()).mul(0.01).backward()

    class Sum(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            strategy.loss = strategy.loss + 0.01 * sum(p.square().sum() for p in strategy.model.parameters())

    found = []
    for other in (Another(), Sum()):
        torch.manual_seed(1)
        plugin = SIPlugin(0.0)
        learn(mlp(), stream([[0, 1]]), other, plugin)
        found.append(plugin.importances)
    for name, importance in found[0].items():
        assert importance.max() > 0
        torch.testing.assert_close(importance, found[1][name])
