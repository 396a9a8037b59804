"""What the penalties measure on, and when they warn: against what torch's own optimiser and plain autograd do."""

import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset, make_avalanche_dataset
from avalanche.training import Naive
from avalanche.training.plugins import LRSchedulerPlugin
from torch import nn
from torch.utils.data import TensorDataset

from engrams.strategies import EWCPlugin, MASPlugin
from engrams.strategies.baselines import L2Plugin
from engrams.strategies.importance import diagonal_fisher, mas_importance
from tests.test_ewc import mlp, quiet, stream

# --- where SGD diverges -----------------------------------------------------------------------------------------------


def first_that_diverges(momentum: float, nesterov: bool) -> float:
    """The least curvature c with which torch's SGD, let loose on c theta^2 / 2 at a learning rate of 1, ends further
    off than it began."""
    curvatures = torch.linspace(0.1, 8.0, 2000, dtype=torch.double)
    theta = nn.Parameter(torch.ones_like(curvatures))
    optimizer = torch.optim.SGD([theta], lr=1.0, momentum=momentum, nesterov=nesterov)
    for _ in range(4000):
        theta.grad = curvatures * theta.detach()
        optimizer.step()
    return curvatures[~(theta.abs() < 1)].min().item()


class OfOne(L2Plugin):
    """One importance is 4, those beside it are 1, and those of other parameters 2."""

    def __init__(self, l2_lambda, worst):
        super().__init__(l2_lambda)
        self.worst = worst

    def importance(self, strategy):
        found = {name: torch.full_like(value, 2) for name, value in super().importance(strategy).items()}
        found[self.worst].fill_(1).view(-1)[0] = 4
        return found


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)])
def test_the_warning_comes_exactly_where_sgd_on_the_penalty_diverges(momentum, nesterov):
    bound = first_that_diverges(momentum, nesterov)
    for worst, factor in [("features.0.weight", 0.98), *((name, 1.02) for name, _ in mlp().named_parameters())]:
        model = mlp()
        plugin = OfOne(bound * factor / 4, worst)  # of curvature 4 lambda, at a learning rate of 1
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0, momentum=momentum, nesterov=nesterov),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=10,
            plugins=[plugin],
            evaluator=quiet(),
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for experience in stream([[0, 1]] * 2):
                strategy.train(experience)
        warned = [str(one.message) for one in caught if "SGD steps on the penalty will diverge" in str(one.message)]
        assert len(warned) == (factor > 1), (bound, factor)
        assert factor < 1 or f"for {worst!r}" in warned[0]


@pytest.mark.parametrize("first", ["penalty", "scheduler"])
def test_the_rate_that_is_warned_of_is_that_of_the_steps_to_come(first):
    """A rate that fell by 100 begins at the top again; one that rises is looked at when it has risen."""
    experiences = stream([[0, 1]] * 2)

    def told(coefficient, schedule):
        model, plugin = mlp(), L2Plugin(coefficient)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scheduler = LRSchedulerPlugin(
            torch.optim.lr_scheduler.LambdaLR(optimizer, schedule), step_granularity="iteration", reset_lr=True
        )
        strategy = Naive(
            model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), train_mb_size=10,
            plugins=[plugin, scheduler] if first == "penalty" else [scheduler, plugin], evaluator=quiet(),
        )  # fmt: skip
        found = []
        for experience in experiences:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                strategy.train(experience)
            found.append(sum("will diverge" in str(one.message) for one in caught))
        return found

    # Curvature is lambda, so that rates above 2 / lambda diverge; four minibatches an experience.
    assert told(2.5, lambda step: 0.1 ** (step % 4)) == [0, 1]
    assert told(2.5, lambda step: (0.1, 0.5, 0.9, 1.0)[step % 4]) == [0, 1]
    assert told(1.9, lambda step: 0.1 ** (step % 4)) == [0, 0]
    assert told(1.9, lambda step: (0.1, 0.5, 0.9, 1.0)[step % 4]) == [0, 0]


# --- the data and the mode that are measured in -----------------------------------------------------------------------


class Stronger(nn.Module):
    """A linear layer behind dropout, which makes another network of it in training."""

    def __init__(self):
        super().__init__()
        self.dropout, self.linear = nn.Dropout(0.9), nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(self.dropout(x))


def fisher_by_hand(model, x):
    total = torch.zeros_like(model.linear.weight)
    for sample in x:
        outputs = model.linear(sample).log_softmax(0)
        for label in (0, 1):
            (gradient,) = torch.autograd.grad(outputs[label], model.linear.weight, retain_graph=True)
            total += outputs[label].exp().detach() * gradient**2
    return total / len(x)


def mas_by_hand(model, x):
    total = torch.zeros_like(model.linear.weight)
    for sample in x:
        (gradient,) = torch.autograd.grad(model.linear(sample).square().sum(), model.linear.weight)
        total += gradient.abs()
    return total / len(x)


@pytest.mark.parametrize(
    ("make", "by_hand"),
    [(lambda: EWCPlugin(1.0), fisher_by_hand), (lambda: MASPlugin(1.0), mas_by_hand)],
    ids=["ewc", "mas"],
)
def test_importance_is_of_the_data_and_the_network_as_they_are_in_evaluation(make, by_hand):
    """In training the data are augmented (here: negated and made larger by one) and the network drops inputs out."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    tensors = TensorDataset(x, y)
    tensors.targets = y.tolist()
    data = as_classification_dataset(tensors, transform_groups={"train": (lambda x: 1 - x, None), "eval": (None, None)})
    model, plugin = Stronger(), make()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=5,
        plugins=[plugin],
        evaluator=quiet(),
    )
    strategy.train(benchmark_from_datasets(train=[data]).train_stream[0])
    torch.testing.assert_close(plugin.importances["linear.weight"], by_hand(model, x), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(by_hand(model, x), by_hand(model, 1 - x), rtol=0.1)


class Half(Naive):
    def forward(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward()

    def criterion(self):
        return nn.functional.cross_entropy(self.mb_output.float(), self.mb_y)


class HalfWithin(nn.Sequential):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


def layers():
    """Of both types under autocast."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.LayerNorm(12),
        nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 2),
    )  # fmt: skip


@pytest.mark.parametrize("where", ["forward", "model", "around"])
def test_importance_in_mixed_precision_is_that_of_float32(where):
    plain, (experience, *_) = layers(), stream([[0, 1]])
    model = HalfWithin(*plain) if where == "model" else plain
    plugins = [EWCPlugin(1.0), EWCPlugin(1.0, fisher="batched"), MASPlugin(1.0)]
    strategy = (Half if where == "forward" else Naive)(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), criterion=nn.CrossEntropyLoss(),
        train_mb_size=10, plugins=plugins, evaluator=quiet(),
    )  # fmt: skip
    around = torch.autocast("cpu", torch.bfloat16) if where == "around" else nullcontext()
    with warnings.catch_warnings(), around:
        warnings.simplefilter("error")  # no parameter takes one sample after another
        strategy.train(experience)
    data = experience.dataset.eval()
    expected = [diagonal_fisher(plain, data), diagonal_fisher(plain, data, "batched", batch_size=10)]
    # A mean over minibatches cancels, and has more of bfloat16's rounding, 0.4 %, in proportion.
    expected.append(mas_importance(plain, data))
    for plugin, importances, share in zip(plugins, expected, (0.02, 0.1, 0.02), strict=True):
        for name, value in importances.items():
            assert plugin.importances[name].dtype == torch.float32
            error = (plugin.importances[name] - value).abs().max() / value.max()
            assert error < (1e-5 if where == "around" else share), (plugin, name, error)


X, Y = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2


class Scaled(Naive):
    """Trains on a part of the experience's samples, made smaller."""

    def train_dataset_adaptation(self, **kwargs):
        self.adapted_dataset = make_avalanche_dataset(TensorDataset(X[:9] / 10, Y[:9]))


def test_importance_is_of_the_data_that_the_strategy_makes_of_the_experiences():
    model, plugins = nn.Linear(6, 2), [EWCPlugin(1.0), MASPlugin(1.0)]
    strategy = Scaled(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), criterion=nn.CrossEntropyLoss(),
        train_mb_size=10, plugins=plugins, evaluator=quiet(),
    )  # fmt: skip
    strategy.train(benchmark_from_datasets(train=[make_avalanche_dataset(TensorDataset(X, Y))]).train_stream[0])
    for plugin, measure in zip(plugins, (diagonal_fisher, mas_importance), strict=True):
        for name, value in measure(model, TensorDataset(X[:9] / 10, Y[:9])).items():
            assert torch.equal(plugin.importances[name], value)


ACTIVATIONS: dict[str, list] = {"all": []}


class Recorder:
    def __init__(self):
        self.seen = set()

    def record(self, module, inputs, output):
        self.seen.add(len(self.seen))
        ACTIVATIONS["all"].append(output)
        ACTIVATIONS[f"of {len(ACTIVATIONS)}"] = output


def test_what_a_network_or_its_hooks_collect_is_as_it_was():
    torch.manual_seed(0)
    recorder, within, said, store = Recorder(), [], [], SimpleNamespace(outputs=[])
    model, data = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)), TensorDataset(torch.randn(9, 3))
    model.kept = []
    model[0].register_forward_hook(recorder.record)
    model[1].register_forward_hook(lambda module, inputs, output: store.outputs.append(output))
    model[1].register_forward_hook(lambda module, inputs, output, default=said: default.append(output))
    model[2].register_forward_pre_hook(lambda module, inputs: within.append(inputs))
    model[2].register_forward_hook(lambda module, inputs, output: model.kept.append(output))
    model(data.tensors[0])

    def everything():
        lists = (within, model.kept, said, store.outputs)
        return [dict(ACTIVATIONS), list(ACTIVATIONS["all"]), set(recorder.seen), *map(list, lists)]

    collected = everything()
    for measure in (diagonal_fisher, mas_importance):
        measure(model, data)
        assert [len(one) for one in everything()] == [len(one) for one in collected] == [2, 1, 1, 1, 1, 1, 1]


# --- local MAS --------------------------------------------------------------------------------------------------------


def test_local_importance_is_the_gradient_of_each_layers_own_squared_norm():
    """Aljundi et al. 2018, section 3.3: global importance, layer by layer, each output of its own inputs alone.

    By autograd, one sample at a time: no product of activations is written down here. What a factor common to all
    layers does is lambda's to undo, so it is measured, not assumed.
    """
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    x = torch.randn(12, 4, dtype=torch.double)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for sample in x:
        inputs = sample.abs()
        for place in (0, 2, 4):
            layer = model[place]
            after = layer(inputs)
            outputs = after.clamp(min=0) if place < 4 else after
            gradients = torch.autograd.grad(outputs.square().sum(), [layer.weight, layer.bias])
            for name, gradient in zip(("weight", "bias"), gradients, strict=True):
                expected[f"{place}.{name}"] += gradient.abs() / len(x)
            inputs = outputs.detach()
    found = mas_importance(model, TensorDataset(x.abs(), torch.zeros(12)), "local")
    factors = torch.cat([(expected[name][found[name] > 0] / found[name][found[name] > 0]) for name in expected])
    assert factors.std() < 1e-9, factors
    assert all((expected[name] > 0).equal(found[name] > 0) for name in expected)
