"""The Fisher follows the loss: each density against numbers that are worked out another way, and through a strategy."""

import functools

import pytest
import torch
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, TensorDataset

from engrams.strategies import EWCPlugin, MASPlugin
from engrams.strategies.densities import likelihood_of
from engrams.strategies.importance import diagonal_fisher
from tests.test_ewc import quiet

SAMPLES = 12


def network(outputs, *last):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs), *last).double()


def data_of(y, seed=1):
    torch.manual_seed(seed)
    return TensorDataset(torch.randn(len(y), 4, dtype=torch.double), y)


def numbers(outputs):
    return torch.rand(SAMPLES, outputs, generator=torch.Generator().manual_seed(2), dtype=torch.double)


def by_all_answers(model, dataset, negative_log_likelihood, answers, probability):
    """E_x sum_y p(y|x) (d -log p(y|x) / d theta)^2 over all answers y that there are, one sample at a time."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x, *_ in dataset:
        f = model(x[None])
        for y in answers:
            gradients = torch.autograd.grad(negative_log_likelihood(f, y), list(parameters.values()), retain_graph=True)
            for (name, _), gradient in zip(parameters.items(), gradients, strict=True):
                total[name] += probability(f, y).item() * gradient.square() / len(dataset)
    return total


def yes_or_no(outputs):
    """Every answer [1, K] of K questions."""
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.double)] * outputs).reshape(-1, 1, outputs)


def assert_same(found, expected, rtol=1e-8):
    assert found.keys() == expected.keys()
    assert any(value.any() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("logits", [True, False])
def test_bernoulli_is_the_expectation_over_all_answers(outputs, logits):
    model = network(outputs) if logits else network(outputs, nn.Sigmoid())
    loss = functional.binary_cross_entropy_with_logits if logits else functional.binary_cross_entropy
    nll = functools.partial(loss, reduction="sum")
    dataset = data_of(numbers(outputs).round())
    name = "bernoulli" if logits else "bernoulli-probabilities"
    exact = diagonal_fisher(model, dataset, likelihood=name)
    expected = by_all_answers(
        model, dataset, nll, yes_or_no(outputs), lambda f, y: torch.exp(-nll(f, y)),
    )  # fmt: skip
    assert_same(exact, expected)
    many = ConcatDataset([dataset] * 600)
    torch.manual_seed(0)
    assert_same(diagonal_fisher(model, many, "sampled", likelihood=name), exact, rtol=0.15)
    empirical = diagonal_fisher(model, dataset, "empirical", likelihood=name)
    expected = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    for x, y in dataset:
        model.zero_grad()
        nll(model(x[None]), y[None]).backward()
        for key, p in model.named_parameters():
            expected[key] += p.grad**2 / len(dataset)
    assert_same(empirical, expected)


def test_probabilities_that_are_0_or_1_to_the_last_bit_have_a_fisher_of_0():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Sigmoid())
    nn.init.constant_(model[0].weight, 1.0)
    for kind in ("exact", "sampled"):
        found = diagonal_fisher(
            model, TensorDataset(torch.tensor([[200.0], [-200.0]])), kind, likelihood="bernoulli-probabilities"
        )
        assert found["0.weight"].item() == 0


def test_log_probabilities_have_the_fisher_of_their_logits():
    dataset = data_of(torch.arange(SAMPLES) % 3)
    for kind in ("exact", "empirical", "batched"):
        assert_same(
            diagonal_fisher(network(3, nn.LogSoftmax(1)), dataset, kind), diagonal_fisher(network(3), dataset, kind)
        )


def test_probabilities_as_labels_and_labels_that_are_none():
    model = network(3)
    soft = numbers(3).softmax(1)
    found = diagonal_fisher(model, data_of(soft), "empirical")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in data_of(soft):
        model.zero_grad()
        nn.CrossEntropyLoss()(model(x[None]), y[None]).backward()
        for name, p in model.named_parameters():
            expected[name] += p.grad**2 / SAMPLES
    assert_same(found, expected)
    y = torch.arange(SAMPLES) % 3
    ignored = y.clone()
    ignored[4:] = -100
    x, _ = data_of(y).tensors
    some = diagonal_fisher(model, TensorDataset(x[:4], y[:4]), "empirical")
    assert_same(
        diagonal_fisher(model, TensorDataset(x, ignored), "empirical"),
        {name: value * 4 / SAMPLES for name, value in some.items()},
    )


# --- which density a strategy's criterion is of -----------------------------------------------------------------------


def train(model, dataset, criterion, plugin, template=SupervisedTemplate):
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import make_avalanche_dataset

    strategy = template(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=criterion,
        train_mb_size=4,
        plugins=[plugin],
        evaluator=quiet(),
    )
    strategy.train(benchmark_from_datasets(train=[make_avalanche_dataset(dataset)]).train_stream[0])
    return strategy


LABELS = torch.arange(SAMPLES) % 3
CRITERIA = {
    "cross-entropy": (network(3), nn.CrossEntropyLoss(), LABELS, "categorical"),
    "a function": (network(3), functional.cross_entropy, LABELS, "categorical"),
    "somebody's cross-entropy": (
        network(3),
        lambda f, y: functional.cross_entropy(2 * f / 2, y),
        LABELS,
        "categorical",
    ),
    "NLL": (network(3, nn.LogSoftmax(1)), nn.NLLLoss(), LABELS, "categorical"),
    "somebody's NLL": (network(3, nn.LogSoftmax(1)), lambda f, y: functional.nll_loss(f, y), LABELS, "categorical"),
    "one logit": (network(1), nn.BCEWithLogitsLoss(), numbers(1).round(), "bernoulli"),
    "one logit, flat": (network(1, nn.Flatten(0)), nn.BCEWithLogitsLoss(), numbers(1).round()[:, 0], "bernoulli"),
    "several labels": (network(3), nn.BCEWithLogitsLoss(), numbers(3).round(), "bernoulli"),
    "somebody's": (network(3), lambda f, y: nn.BCEWithLogitsLoss()(f, y).sum(), numbers(3).round(), "bernoulli"),
    "probabilities": (network(2, nn.Sigmoid()), nn.BCELoss(), numbers(2).round(), "bernoulli-probabilities"),
    "one number": (network(1), nn.MSELoss(), numbers(1), "gaussian"),
    "numbers": (network(2), nn.MSELoss(), numbers(2), "gaussian"),
    "half the squares": (network(2), lambda f, y: (f - y).square().mean() / 2, numbers(2), "gaussian"),
    "a partial": (network(2), functools.partial(functional.mse_loss, reduction="sum"), numbers(2), "gaussian"),
}


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("case", CRITERIA)
def test_the_fisher_is_that_of_the_criterion(case, fisher):
    model, criterion, y, likelihood = CRITERIA[case]
    dataset, plugin = data_of(y), EWCPlugin(1.0, fisher=fisher)
    train(model, dataset, criterion, plugin)
    assert_same(plugin.importances, diagonal_fisher(model, dataset, fisher, likelihood=likelihood))


class Focal(nn.CrossEntropyLoss):
    def forward(self, f, y):
        p = f.softmax(1).gather(1, y[:, None])
        return -((1 - p) ** 2 * p.log()).mean()


@pytest.mark.parametrize("criterion", [Focal(), nn.L1Loss(), nn.HuberLoss(), nn.MultiMarginLoss()])
def test_a_criterion_of_no_known_density_is_refused_before_training_unless_one_is_given(criterion):
    y = LABELS if isinstance(criterion, Focal | nn.MultiMarginLoss) else numbers(3)
    model = network(3)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(
        ValueError, match=f"the criterion \\({type(criterion).__name__}\\) is none whose density is known"
    ):
        train(model, data_of(y), criterion, EWCPlugin(1.0))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert likelihood_of(criterion) is None
    plugin = EWCPlugin(1.0, likelihood="categorical" if y is LABELS else "gaussian")
    train(model, data_of(y), criterion, plugin)
    assert plugin.importances
    train(network(3), data_of(y), criterion, MASPlugin(1.0))  # reads no density


@pytest.mark.parametrize(
    ("case", "given"),
    [("cross-entropy", "gaussian"), ("one logit", "categorical"), ("numbers", "bernoulli"),
     ("probabilities", "bernoulli"), ("half the squares", "categorical")],
)  # fmt: skip
def test_a_density_that_contradicts_the_criterion_is_refused(case, given):
    model, criterion, y, likelihood = CRITERIA[case]
    with pytest.raises(
        ValueError, match=f"likelihood='{given}' contradicts the criterion, whose density is '{likelihood}'"
    ):
        train(model, data_of(y), criterion, EWCPlugin(1.0, likelihood=given))


def test_a_strategy_with_a_loss_of_its_own_is_asked_for_its_density():
    class Regression(SupervisedTemplate):
        def criterion(self):
            return functional.mse_loss(self.mb_output, self.mb_y)

    plugin, model, dataset = EWCPlugin(1.0), network(2), data_of(numbers(2))
    train(model, dataset, nn.CrossEntropyLoss(), plugin, Regression)
    assert_same(plugin.importances, diagonal_fisher(model, dataset, likelihood="gaussian"))


def test_weights_and_smoothing_are_said():
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.double), label_smoothing=0.1)
    with (
        pytest.warns(UserWarning, match="the criterion has class weights"),
        pytest.warns(UserWarning, match="the criterion has label smoothing"),
    ):
        train(network(3), data_of(LABELS), criterion, EWCPlugin(1.0))


def test_nll_of_what_is_no_log_probability_is_refused():
    with pytest.raises(ValueError, match=r"nn\.NLLLoss needs log-probabilities"):
        train(network(3), data_of(LABELS), nn.NLLLoss(), EWCPlugin(1.0))


def test_importances_that_are_all_zero_are_warned_of_by_name():
    model = network(3)
    nn.init.zeros_(model[2].weight)

    class Zero(nn.Module):
        def forward(self, f):
            return 0 * f

    with pytest.warns(UserWarning, match=r"MASPlugin: every importance is 0 after experience 0 \('0.weight'"):
        train(nn.Sequential(*model, Zero()), data_of(LABELS), nn.CrossEntropyLoss(), MASPlugin(1.0))
