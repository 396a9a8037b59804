"""The Fisher follows the loss: each density against numbers that are worked out another way, and through a strategy."""

import functools
import pickle
import warnings

import pytest
import torch
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, TensorDataset

from engrams.strategies import EWCPlugin, MASPlugin, SIPlugin, per_sample_gradients
from engrams.strategies.criteria import counted, likelihood_by_gradient, likelihood_of
from engrams.strategies.densities import density
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
    assert_same(empirical, by_labels(model, dataset, nll, SAMPLES))


def test_probabilities_that_are_0_or_1_to_the_last_bit_have_a_fisher_of_0():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Sigmoid())
    nn.init.constant_(model[0].weight, 1.0)
    for kind in ("exact", "sampled"):
        found = diagonal_fisher(
            model, TensorDataset(torch.tensor([[200.0], [-200.0]])), kind, likelihood="bernoulli-probabilities"
        )
        assert found["0.weight"].item() == 0


@pytest.mark.parametrize(("bias", "found"), [(-0.5, "-0.5 to 0.5"), (0.5, "0.5 to 1.5"), (-0.25, "-0.25 to 0.75")])
def test_what_is_no_probability_is_refused(bias, found):
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    nn.init.constant_(model.bias, bias)
    data = TensorDataset(torch.tensor([[0.0], [1.0]]))
    with pytest.raises(ValueError, match=rf"needs outputs in \[0, 1\]; the network gives {found}$"):
        diagonal_fisher(model, data, likelihood="bernoulli-probabilities")


def test_log_probabilities_have_the_fisher_of_their_logits():
    dataset = data_of(torch.arange(SAMPLES) % 3)
    for kind in ("exact", "empirical", "batched"):
        assert_same(
            diagonal_fisher(network(3, nn.LogSoftmax(1)), dataset, kind), diagonal_fisher(network(3), dataset, kind)
        )


def test_probabilities_of_classes_may_be_labels():
    """Whether they add up to 1 or not."""
    model = network(3)
    for y in (numbers(3).softmax(1), numbers(3)):
        soft = data_of(y)
        assert_same(diagonal_fisher(model, soft, "empirical"), by_labels(model, soft, nn.CrossEntropyLoss(), SAMPLES))


def test_a_class_that_is_impossible_or_certain_in_one_sample_counts_in_the_others():
    model, (x, y) = nn.Linear(4, 3).double(), data_of(LABELS).tensors
    x[4] *= 1e5
    p = model(x).softmax(1)
    assert p[4].sort().values.tolist() == [0, 0, 1]
    assert ((p > 0) & (p < 1)).any(0).all()
    nll, answers = functional.cross_entropy, torch.arange(3)[:, None]
    expected = by_all_answers(model, TensorDataset(x), nll, answers, lambda f, y: torch.exp(-nll(f, y)))
    assert_same(diagonal_fisher(model, TensorDataset(x, y)), expected)


def by_labels(model, dataset, negative_log_likelihood, divisor):
    """sum_n (d -log p(y_n|x_n) / d theta)^2 / divisor, one sample at a time."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in dataset:
        model.zero_grad()
        negative_log_likelihood(model(x[None]), y[None]).backward()
        for name, p in model.named_parameters():
            total[name] += p.grad**2 / divisor
    return total


@pytest.mark.parametrize("fisher", ["exact", "sampled", "empirical", "batched"])
def test_a_sample_without_a_label_is_none_in_any_fisher(fisher):
    """As in the loss, whose mean is over the samples that have one."""
    model, (x, y) = network(3), data_of(torch.arange(SAMPLES) % 3).tensors
    labelled = torch.arange(SAMPLES) % 3 != 1
    ignored = torch.where(labelled, y, 255)
    torch.manual_seed(0)
    found = diagonal_fisher(
        model, TensorDataset(x, ignored), fisher, batch_size=SAMPLES, samples_at_once=5, ignore_index=255
    )
    if fisher == "batched":
        nn.CrossEntropyLoss(ignore_index=255)(model(x), ignored).backward()
        expected = {name: p.grad**2 for name, p in model.named_parameters()}
    elif fisher == "sampled":  # the others' labels are drawn, too, and left out
        expected = found
        assert found["2.bias"].sum() < SAMPLES
    else:
        expected = diagonal_fisher(model, TensorDataset(x[labelled], y[labelled]), fisher)
    assert_same(found, expected)
    none = diagonal_fisher(model, TensorDataset(x, torch.full_like(y, 255)), fisher, ignore_index=255)
    assert not any(value.any() for value in none.values())


@pytest.mark.parametrize("ignored", [-100, 1])
def test_sampled_without_some_labels_is_exact_over_many_samples(ignored):
    """Where what is ignored is a class, it is drawn as the others are for the samples that have a label."""
    model, (x, y) = network(3), data_of(torch.arange(SAMPLES) % 3).tensors
    dataset = TensorDataset(x, torch.where(y == 1, ignored, y))
    torch.manual_seed(0)
    many = diagonal_fisher(model, ConcatDataset([dataset] * 600), "sampled", ignore_index=ignored)
    assert_same(many, diagonal_fisher(model, TensorDataset(x[y != 1], y[y != 1])), rtol=0.15)


@pytest.mark.parametrize("label", [-100, 3])
@pytest.mark.parametrize("fisher", ["empirical", "batched"])
def test_a_label_that_counts_and_is_no_class_is_named(fisher, label):
    """Of a criterion of one's own that reads it as some class."""
    data = data_of(torch.where(torch.arange(SAMPLES) < SAMPLES - 1, torch.arange(SAMPLES) % 3, label))
    with pytest.raises(ValueError, match=rf"labels must be classes, 0 to 2 for 3 outputs, .*; got .*{label}"):
        diagonal_fisher(network(3), data, fisher, counted=lambda outputs, batch: None)


class Times(nn.Module):
    """A number times the input."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, f):
        return self.factor * f


class Positions(nn.Module):
    """Outputs [N, 3, 2]: one of three classes at each of two positions."""

    def __init__(self):
        super().__init__()
        self.body = network(6)

    def forward(self, x):
        return self.body(x).unflatten(1, (3, 2))


def test_a_class_at_every_position_is_the_product_over_positions():
    model = Positions()
    y = torch.stack([torch.arange(SAMPLES) % 3, torch.arange(SAMPLES) // 3 % 3], 1)
    dataset, nll = data_of(y), functools.partial(functional.cross_entropy, reduction="sum")
    exact = diagonal_fisher(model, dataset)
    answers = torch.cartesian_prod(torch.arange(3), torch.arange(3))[:, None]
    assert_same(exact, by_all_answers(model, dataset, nll, answers, lambda f, y: torch.exp(-nll(f, y))))
    torch.manual_seed(0)
    assert_same(diagonal_fisher(model, ConcatDataset([dataset] * 600), "sampled"), exact, rtol=0.15)
    assert_same(diagonal_fisher(model, dataset, "empirical"), by_labels(model, dataset, nll, SAMPLES))
    soft = data_of(numbers(6).unflatten(1, (3, 2)).softmax(1))
    assert_same(diagonal_fisher(model, soft, "empirical"), by_labels(model, soft, nll, SAMPLES))


def test_a_position_without_a_label_is_none():
    model = Positions()
    y = torch.stack([torch.arange(SAMPLES) % 3, torch.arange(SAMPLES) // 3 % 3], 1)
    y[:5, 1] = y[2:4, 0] = -100
    dataset, nll = data_of(y), functools.partial(functional.cross_entropy, reduction="sum")
    assert_same(diagonal_fisher(model, dataset, "empirical"), by_labels(model, dataset, nll, SAMPLES - 2))
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, labels in dataset:
        for position in (labels != -100).nonzero().flatten():
            of_one = by_all_answers(
                model, [(x,)], lambda f, y, t=position: functional.cross_entropy(f[:, :, t], y),
                torch.arange(3)[:, None], lambda f, y, t=position: f[0, :, t].softmax(0)[y],
            )  # fmt: skip
            total = {name: value + of_one[name] / (SAMPLES - 2) for name, value in total.items()}
    assert_same(diagonal_fisher(model, dataset), total)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_a_strategy_learns_positions_some_without_a_label(fisher):
    y = torch.stack([torch.arange(SAMPLES) % 3, torch.arange(SAMPLES) // 3 % 3], 1)
    y[3:5, 1] = 9
    model, plugin, dataset = Positions(), EWCPlugin(1.0, fisher=fisher), data_of(y)
    train(model, dataset, functools.partial(functional.cross_entropy, ignore_index=9), plugin)
    assert_same(plugin.importances, diagonal_fisher(model, dataset, fisher, ignore_index=9))


class Own(nn.Module):
    """Somebody's cross-entropy, which says what it ignores."""

    def __init__(self):
        super().__init__()
        self.ignore_index = 7

    def forward(self, f, y):
        return functional.cross_entropy(1 * f, y, ignore_index=self.ignore_index)


class OwnNLL(Own):
    def forward(self, f, y):
        return functional.nll_loss(1 * f, y, ignore_index=self.ignore_index)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_what_somebodys_criterion_ignores_is_no_label(fisher):
    y = torch.where(LABELS == 1, 7, LABELS)
    model, plugin, dataset = network(3), EWCPlugin(1.0, fisher=fisher), data_of(y)
    train(model, dataset, Own(), plugin)
    assert_same(plugin.importances, diagonal_fisher(model, dataset, fisher, ignore_index=7))


@pytest.mark.parametrize("fisher", ["exact", "sampled", "empirical", "batched"])
def test_one_output_is_no_softmax_in_any_fisher(fisher):
    with pytest.raises(
        ValueError, match=r"the network gives shape \[N, 1\]. One logit belongs to nn.BCEWithLogitsLoss"
    ):
        diagonal_fisher(network(1), data_of(torch.zeros(SAMPLES, dtype=torch.long)), fisher)


def test_outputs_of_one_sample_may_be_squeezed():
    class Squeezed(nn.Sequential):
        def forward(self, x):
            return super().forward(x).squeeze()

    dataset = data_of(LABELS[:7])
    for kind in ("exact", "empirical", "batched"):
        found = diagonal_fisher(Squeezed(*network(3)), dataset, kind, samples_at_once=3, batch_size=3)
        assert_same(found, diagonal_fisher(network(3), dataset, kind, batch_size=3))


def test_more_outputs_than_an_exact_fisher_can_have_backward_passes_are_refused_before_training():
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 5000)).double()
    y = torch.zeros(SAMPLES, 5000, dtype=torch.double)
    with pytest.raises(ValueError, match=r"nothing was trained: .* 5,000 of them .* fisher='sampled' has one"):
        train(model, data_of(y), nn.MSELoss(), EWCPlugin(1.0))
    train(model, data_of(y), nn.MSELoss(), EWCPlugin(1.0, fisher="sampled"))


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
    "somebody's, of labels that may be ignored": (
        network(3),
        lambda f, y: functional.cross_entropy(f, y),
        torch.where(LABELS == 1, -100, LABELS),
        "categorical",
    ),
    "probabilities": (network(2, nn.Sigmoid()), nn.BCELoss(), numbers(2).round(), "bernoulli-probabilities"),
    "somebody's, of probabilities": (
        network(2, nn.Sigmoid()),
        lambda f, y: functional.binary_cross_entropy(f, y),
        numbers(2).round(),
        "bernoulli-probabilities",
    ),
    "one number": (network(1), nn.MSELoss(), numbers(1), "gaussian"),
    "numbers": (network(2), nn.MSELoss(), numbers(2), "gaussian"),
    "squares of one number, near 0": (
        network(1, Times(1e-3)),
        lambda f, y: (f - y).square().mean(),
        numbers(1),
        "gaussian",
    ),
    "half the squares": (network(2), lambda f, y: (f - y).square().mean() / 2, numbers(2), "gaussian"),
    "divergence of probabilities": (
        network(3, nn.LogSoftmax(1)),
        nn.KLDivLoss(reduction="batchmean"),
        numbers(3).softmax(1),
        "categorical",
    ),
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


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_the_noise_of_squared_errors_reaches_the_fisher(fisher):
    """A normal's Fisher is as the inverse of its variance; the empirical one has its square."""
    torch.manual_seed(0)
    dataset = TensorDataset(torch.randn(8, 5), torch.randn(8, 2))
    found = {}
    for noise_std in (1.0, 2.0):
        plugin = EWCPlugin(1.0, fisher=fisher, noise_std=noise_std)
        torch.manual_seed(0)
        train(nn.Linear(5, 2), dataset, nn.MSELoss(), plugin)
        found[noise_std] = plugin.importances
    for name, importance in found[1.0].items():
        ratio = 4 if fisher == "exact" else 16
        torch.testing.assert_close(importance, ratio * found[2.0][name], msg=name)


def focal(f, y):
    return Focal()(f, y)


def focal_of_probabilities(f, y):
    return -(y * (1 - f.softmax(1)) ** 2 * f.log_softmax(1)).mean()


def two(loss):
    """One output for two classes, as -1 and 1."""
    return lambda f, y: loss(f[:, 0], 2.0 * y - 1)


HALF = torch.arange(SAMPLES) % 2
UNKNOWN = {
    "focal": (3, Focal(), LABELS, "categorical"),
    "focal, a function": (3, focal, LABELS, "categorical"),
    "margins": (3, nn.MultiMarginLoss(), LABELS, "categorical"),
    "margins of two": (2, nn.MultiMarginLoss(), HALF, "categorical"),
    "weighted": (
        3, lambda f, y: functional.cross_entropy(f, y, torch.tensor([1.0, 2, 3]).to(f)), LABELS, "categorical",
    ),
    "a little warmer": (3, lambda f, y: functional.cross_entropy(f / 1.005, y), LABELS, "categorical"),
    "warmer": (3, lambda f, y: functional.cross_entropy(f / 2, y), LABELS, "categorical"),
    "positive weight": (
        1, lambda f, y: functional.binary_cross_entropy_with_logits(f, y, pos_weight=torch.tensor([3.0]).to(f)),
        HALF.double()[:, None], "bernoulli",
    ),
    "hinge": (1, two(lambda f, y: (1 - f * y).clamp(min=0).mean()), HALF, "bernoulli"),
    "absolute": (3, nn.L1Loss(), numbers(3), "gaussian"),
    "absolute, one number": (1, nn.L1Loss(), numbers(1), "gaussian"),
    "absolute, of yes and no": (1, nn.L1Loss(), HALF.double()[:, None], "gaussian"),
    "huber": (3, nn.HuberLoss(), numbers(3), "gaussian"),
    "huber, square for a long way": (1, nn.HuberLoss(delta=30), numbers(1), "gaussian"),
    "smooth": (1, nn.SmoothL1Loss(beta=5), numbers(1), "gaussian"),
    "log-cosh": (1, lambda f, y: (f - y).cosh().log().mean(), numbers(1), "gaussian"),
    "a hundred thousandth": (3, lambda f, y: 1e-5 * focal(f, y), LABELS, "categorical"),
    "nothing": (3, lambda f, y: 0 * f.sum(), LABELS, "categorical"),
    "counts": (1, nn.PoissonNLLLoss(), numbers(1).mul(5).round(), "gaussian"),
}  # fmt: skip


ONE_OF_THEM = [case for case in UNKNOWN if case not in ("weighted", "positive weight")]
"""Of one sample a weighted loss is a multiple of the other."""


@pytest.mark.parametrize(
    ("case", "samples"), [*((case, SAMPLES) for case in UNKNOWN), *((case, 1) for case in ONE_OF_THEM)]
)
def test_a_criterion_of_no_known_density_is_refused_before_training_unless_one_is_given(case, samples):
    """Of one sample, too, where every gradient points the same way."""
    outputs, criterion, y, given = UNKNOWN[case]
    model, dataset = network(outputs), data_of(y[:samples])
    name = getattr(criterion, "__name__", type(criterion).__name__)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=rf"the criterion \({name}\) is none whose density is known"):
        train(model, dataset, criterion, EWCPlugin(1.0))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert likelihood_of(criterion) is None
    plugin = EWCPlugin(1.0, likelihood=given, fisher="sampled")
    train(model, dataset, criterion, plugin)
    assert plugin.importances
    train(network(outputs), dataset, criterion, MASPlugin(1.0))  # reads no density


@pytest.mark.parametrize("order", [slice(None), LABELS.argsort()])
def test_what_is_said_of_a_criterion_does_not_depend_on_the_first_samples(order):
    """Class weights are the same as none where all labels are; and of samples without a label nothing is known."""

    def weighted(f, y):
        return functional.cross_entropy(f, y, weight=torch.tensor([1.0, 10.0, 0.1]).double())

    def ignoring(f, y):
        return functional.cross_entropy(f, y, ignore_index=0)

    with pytest.raises(ValueError, match=r"the criterion \(weighted\) is none whose density is known"):
        train(network(3), data_of(LABELS[order]), weighted, EWCPlugin(1.0))
    train(network(3), data_of(LABELS[order]), ignoring, EWCPlugin(1.0))


def test_a_strategys_own_loss_is_named():
    class Focused(SupervisedTemplate):
        def criterion(self):
            return self.mb_output.abs().mean()

    with pytest.raises(ValueError, match=r"the criterion \(Focused.criterion\) is none whose density is known"):
        train(network(3), data_of(LABELS), nn.CrossEntropyLoss(), EWCPlugin(1.0), Focused)


def test_a_criterion_of_no_known_density_is_refused_of_flat_outputs_too():
    with pytest.raises(ValueError, match=r"the criterion \(L1Loss\) is none whose density is known"):
        train(network(1, nn.Flatten(0)), data_of(numbers(1)[:, 0]), nn.L1Loss(), EWCPlugin(1.0))


class Reconstruction(SupervisedTemplate):
    def criterion(self):
        return functional.mse_loss(self.mb_output, self.mb_x)


OF_OTHER_TARGETS = {
    "smoothed": (3, lambda f, y: functional.cross_entropy(f, y, label_smoothing=0.1), LABELS, "categorical"),
    "squares of one-hot labels": (
        3, lambda f, y: functional.mse_loss(f, functional.one_hot(y, 3).to(f)), LABELS, "gaussian",
    ),
    "one against all": (
        3, lambda f, y: functional.binary_cross_entropy_with_logits(f, functional.one_hot(y, 3).to(f)), LABELS,
        "bernoulli",
    ),
    "logarithms of probabilities": (
        3, lambda f, y: functional.kl_div(f.log_softmax(1), y, reduction="batchmean", log_target=True),
        numbers(3).log_softmax(1), "categorical",
    ),
    "the inputs": (4, None, LABELS, "gaussian"),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_OTHER_TARGETS)
def test_a_density_is_known_whatever_the_targets_are(case):
    """But where labels are read, they have to be the targets."""
    outputs, criterion, y, likelihood = OF_OTHER_TARGETS[case]
    model, plugin, dataset = network(outputs), EWCPlugin(1.0), data_of(y)
    template = SupervisedTemplate if criterion else Reconstruction
    train(model, dataset, criterion, plugin, template)
    assert_same(plugin.importances, diagonal_fisher(model, TensorDataset(dataset.tensors[0]), likelihood=likelihood))
    for fisher in ("empirical", "batched"):
        with pytest.raises(ValueError, match=f"fisher='{fisher}' reads labels, and the criterion's targets are others"):
            train(network(outputs), dataset, criterion, EWCPlugin(1.0, fisher=fisher), template)


@pytest.mark.parametrize("likelihood", [None, "categorical"])
def test_classes_in_the_last_dimension_are_refused(likelihood):
    """Outputs [N, 2, 3] of somebody's criterion that flattens them."""
    y = torch.stack([torch.arange(SAMPLES) % 3, torch.arange(SAMPLES) // 3 % 3], 1)
    model = nn.Sequential(Positions(), nn.Flatten(), nn.Unflatten(1, (2, 3)))
    with pytest.raises(ValueError, match=r"the criterion takes the last dimension|labels of shape .* do not fit"):
        train(
            model, data_of(y), lambda f, y: functional.cross_entropy(f.flatten(0, 1), y.flatten()),
            EWCPlugin(1.0, likelihood=likelihood),
        )  # fmt: skip


def test_classes_in_the_last_dimension_are_refused_whatever_the_criterion_is():
    y = torch.stack([torch.arange(SAMPLES) % 3, torch.arange(SAMPLES) // 3 % 3], 1)
    model = nn.Sequential(Positions(), nn.Flatten(), nn.Unflatten(1, (2, 3)))
    with pytest.raises(ValueError, match=r"labels of shape \(3, 2\) do not fit outputs of shape \(3, 2, 3\)"):
        train(
            model, data_of(y), lambda f, y: focal(f.flatten(0, 1), y.flatten()),
            EWCPlugin(1.0, likelihood="categorical"),
        )  # fmt: skip


OF_ANY_FORM = {
    "probabilities": (network(3), focal_of_probabilities, numbers(3).softmax(1), "categorical"),
    "probabilities at every position": (
        Positions(), focal_of_probabilities, numbers(6).unflatten(1, (3, 2)).softmax(1), "categorical",
    ),
    "two classes": (
        network(3), lambda f, y: focal(f, y[:, 0]) + focal(f, y[:, 1]), torch.stack([LABELS, LABELS.flip(0)], 1),
        "categorical",
    ),
    "numbers at every position": (Positions(), nn.L1Loss(), numbers(6).unflatten(1, (3, 2)), "gaussian"),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_ANY_FORM)
def test_where_the_density_is_given_targets_are_class_indices_or_of_other_forms(case):
    model, criterion, y, likelihood = OF_ANY_FORM[case]
    plugin, dataset = EWCPlugin(1.0, likelihood=likelihood), data_of(y)
    train(model, dataset, criterion, plugin)
    assert_same(plugin.importances, diagonal_fisher(model, dataset, likelihood=likelihood))


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), lambda f, y: functional.mse_loss(f, y.double())])
def test_one_sample_is_an_experience_too(criterion):
    """Somebody's criterion, too, of one number."""
    known = isinstance(criterion, nn.CrossEntropyLoss)
    model, plugin = network(3 if known else 1, *() if known else [nn.Flatten(0)]), EWCPlugin(1.0)
    train(model, data_of(LABELS[1:2]), criterion, plugin)
    likelihood = "categorical" if known else "gaussian"
    assert_same(plugin.importances, diagonal_fisher(model, data_of(LABELS[1:2]), likelihood=likelihood))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_density_is_known_in_half_precision_too(dtype):
    x = torch.randn(SAMPLES, 4).to(dtype)
    for criterion, y, likelihood in (
        (lambda f, y: functional.cross_entropy(f, y), LABELS, "categorical"),
        (lambda f, y: functional.cross_entropy(f.float(), y), LABELS, "categorical"),
        (lambda f, y: (f - y).square().mean(), numbers(3).to(dtype), "gaussian"),
        (lambda f, y: functional.binary_cross_entropy_with_logits(f, y), numbers(3).round().to(dtype), "bernoulli"),
    ):
        plugin = EWCPlugin(1e-3)
        assert plugin._likelihood(train(network(3).to(dtype), TensorDataset(x, y), criterion, plugin)) == likelihood
    of_numbers = numbers(3).to(dtype)
    for criterion, y in ((focal, LABELS), (nn.L1Loss(), of_numbers), (nn.HuberLoss(delta=30), of_numbers)):
        with pytest.raises(ValueError, match="is none whose density is known"):
            train(network(3).to(dtype), TensorDataset(x, y), criterion, EWCPlugin(1.0))


@pytest.mark.parametrize("shape", [(3, 5, 16, 16), (3, 21, 32, 32)])
def test_a_cross_entropy_of_many_positions_is_known(shape):
    """The gradients of most of them are next to nothing."""
    torch.manual_seed(0)
    y = torch.randint(shape[1], (shape[0], *shape[2:]))
    assert likelihood_by_gradient(lambda f: functional.cross_entropy(f, y), torch.randn(shape)) == "categorical"


def test_what_a_criterion_of_one_precision_counts_is_found_too():
    """Somebody's kernel may take half precision alone; one that fails in every precision ends in its own error."""
    y = torch.tensor([0, 1, 255, 2])

    def of_half(f):
        if f.dtype != torch.float16:
            raise TypeError("half precision only")
        return functional.cross_entropy(f, y, ignore_index=255)

    def broken(f):
        raise TypeError("of no precision")

    outputs = torch.randn(4, 3).half()
    answers = counted(of_half, outputs, "categorical")
    assert answers.shape == (4, 1)
    assert answers.flatten().tolist() == [True, True, False, True]
    for one in (outputs, outputs.float()):
        with pytest.raises(TypeError, match="of no precision"):
            counted(broken, one, "categorical")


def test_the_density_is_found_once_and_again_for_another_criterion():
    """And with it, before anything is trained: not after an experience, on what it has made of the outputs."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import make_avalanche_dataset

    asked = []

    def squared(f, y):
        asked.append(len(f))
        return (f - y).square().mean()

    plugin = EWCPlugin(1.0)
    strategy = train(network(2), data_of(numbers(2)), squared, plugin)
    (experience,) = benchmark_from_datasets(train=[make_avalanche_dataset(data_of(numbers(2)))]).train_stream
    asked.clear()
    strategy.train(experience)
    assert asked == [4, 4, 4, 3, SAMPLES]  # in the steps; and which answers it counts, of a first look and of all
    strategy._criterion = lambda f, y: functional.binary_cross_entropy_with_logits(f, y)
    strategy.train(experience)
    assert plugin._likelihood(strategy) == "bernoulli"
    before = [p.clone() for p in strategy.model.parameters()]
    strategy._criterion = nn.L1Loss()
    with pytest.raises(ValueError, match=r"the criterion \(L1Loss\)"):
        strategy.train(experience)
    assert all(torch.equal(p, old) for p, old in zip(strategy.model.parameters(), before, strict=True))
    assert pickle.loads(pickle.dumps(plugin)).importances.keys() == plugin.importances.keys()


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


SAID = {
    "class weights (weight)": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double()), LABELS),
    "class weights (pos_weight)": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)), numbers(3).round()),
    "label smoothing": (functools.partial(functional.cross_entropy, label_smoothing=0.1), LABELS),
    "a sum over the minibatch": (nn.CrossEntropyLoss(reduction="sum"), LABELS),
    "": (nn.CrossEntropyLoss(), LABELS),
}


@pytest.mark.parametrize("what", SAID)
def test_what_a_criterion_has_besides_its_density_is_said(what):
    criterion, y = SAID[what]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(network(3), data_of(y), criterion, EWCPlugin(1.0))
    said = [str(one.message) for one in caught if "the criterion has" in str(one.message)]
    assert len(said) == bool(what)
    assert not what or said[0].startswith(f"EWCPlugin: the criterion has {what}")


@pytest.mark.parametrize("likelihood", [None, "categorical"])
@pytest.mark.parametrize(
    ("criterion", "y"),
    [
        (nn.NLLLoss(), LABELS),
        (lambda f, y: functional.nll_loss(f, y), LABELS),
        (nn.KLDivLoss(reduction="batchmean"), numbers(3).softmax(1)),
    ],
)
def test_a_likelihood_of_what_is_no_log_probability_is_refused(criterion, y, likelihood):
    name = getattr(criterion, "__name__", type(criterion).__name__)
    model, data = network(3), data_of(y)
    total = "|".join(f"{of_one:.3g}" for of_one in model(data.tensors[0]).exp().sum(1).tolist())
    with pytest.raises(
        ValueError, match=rf"the criterion \({name}\) needs log-probabilities; .* up to ({total}), not 1"
    ):
        train(model, data, criterion, EWCPlugin(1.0, likelihood=likelihood))


class ShiftedLogProbabilities(nn.Module):
    """Log-probabilities, a number added to each sample's."""

    def __init__(self, *added):
        super().__init__()
        self.body, self.added = network(3), torch.tensor(added)

    def forward(self, x):
        return self.body(x).log_softmax(1) + self.added.repeat(len(x))[: len(x), None]


@pytest.mark.parametrize("likelihood", [None, "categorical"])
@pytest.mark.parametrize("added", [(0.5,), (-0.5,), (-3.0,), (0.0, 0.5)])
def test_what_is_nearly_a_log_probability_or_is_one_for_some_samples_only_is_refused(added, likelihood):
    with pytest.raises(ValueError, match=r"\(<lambda>\) needs log-probabilities"):
        train(
            ShiftedLogProbabilities(*added), data_of(LABELS), lambda f, y: functional.nll_loss(f, y),
            EWCPlugin(1.0, likelihood=likelihood),
        )  # fmt: skip


def test_that_log_probabilities_are_needed_is_known_whatever_is_ignored():
    y = torch.where(LABELS == 1, 7, LABELS)
    with pytest.raises(ValueError, match=r"\(OwnNLL\) needs log-probabilities"):
        train(network(3), data_of(y), OwnNLL(), EWCPlugin(1.0))


def test_a_cross_entropy_that_keeps_its_normaliser_near_1_has_no_want_of_log_probabilities():
    """Of log-probabilities it is the cross-entropy alone, but it is not linear in the outputs; the density is said."""
    plugin, model = EWCPlugin(1.0, likelihood="categorical"), network(3)

    def criterion(f, y):
        return 0.05 * (functional.cross_entropy(f, y) + f.logsumexp(1).square().mean())

    train(model, data_of(LABELS), criterion, plugin)
    assert_same(plugin.importances, diagonal_fisher(model, data_of(LABELS)))


def test_where_the_density_is_said_what_somebodys_loss_leaves_out_counts():
    plugin, model = EWCPlugin(1.0, likelihood="categorical"), network(3)
    train(model, data_of(LABELS), lambda f, y: focal(f[y != 1], y[y != 1]), plugin)
    assert_same(plugin.importances, diagonal_fisher(model, data_of(LABELS)))


def test_what_somebodys_loss_leaves_out_is_left_out_of_every_part_of_a_minibatch(monkeypatch):
    monkeypatch.setattr(per_sample_gradients, "NUMBERS_AT_ONCE", 5 * 3**2)
    plugin, model = EWCPlugin(1.0), network(3)
    train(model, data_of(LABELS), lambda f, y: functional.cross_entropy(f, y, ignore_index=1), plugin)
    assert_same(plugin.importances, diagonal_fisher(model, data_of(LABELS), ignore_index=1))


@pytest.mark.parametrize(
    ("plugin", "why"),
    [
        (MASPlugin(1.0), "The outputs may not depend on the parameters$"),
        (EWCPlugin(1.0), "The outputs may not depend on the parameters, or the density may not be the loss's$"),
        (SIPlugin(1.0), "No step may have lowered the loss"),
    ],
)
def test_importances_that_are_all_zero_are_warned_of_by_name(plugin, why):
    """And each says of itself what it may be: a method that asks for no density says nothing of one."""
    named = (
        rf"{type(plugin).__name__}: every importance is 0 after experience 0 \('0.weight', '0.bias', '2.weight' and all"
    )
    with pytest.warns(UserWarning, match=rf"{named} others\): nothing of it will be held. {why}"):
        train(nn.Sequential(*network(3), Times(0)), data_of(LABELS), nn.CrossEntropyLoss(), plugin)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "bernoulli-probabilities", "gaussian"])
def test_of_outputs_that_are_no_numbers_something_is_drawn(likelihood):
    """So that it is the importance that is said not to be finite, by the parameter's name, and not torch's drawing."""
    outputs = torch.full((2, 3), torch.nan)
    assert len(density(likelihood).draw(outputs)) == 2


# --- what a criterion of one's own leaves out, keeps and is asked in --------------------------------------------------


def of_answered(f, y):
    return functional.cross_entropy(f[y >= 0], y[y >= 0])


def of_all_but_255(f, y):
    return functional.cross_entropy(f, y, ignore_index=255)


def masked_entropy(f, y):
    counts = (y >= 0).to(f)
    return (functional.binary_cross_entropy_with_logits(f, y.clamp_min(0), reduction="none") * counts).sum()


def masked_squares(f, y):
    counts = ~y.isnan()
    return (f - y)[counts].square().mean()


# A criterion, its labels of a sample, what stands for none, and the mean of an answer.
LEAVES_OUT = {
    "a class": (of_answered, LABELS, -1, lambda f: f.softmax(1)),
    "ignore_index": (of_all_but_255, LABELS, 255, lambda f: f.softmax(1)),
    "yes or no": (masked_entropy, numbers(3).round(), -1, torch.sigmoid),
    "numbers": (masked_squares, numbers(3), float("nan"), lambda f: f),
}


@pytest.mark.parametrize("fisher", ["exact", "empirical", "batched"])
@pytest.mark.parametrize("case", LEAVES_OUT)
def test_what_a_criterion_of_ones_own_leaves_out_is_no_answer(case, fisher):
    """In closed form, of one linear layer; the first three samples, looked at before training, lack nothing."""
    criterion, y, none, mean_of = LEAVES_OUT[case]
    y = y.clone()
    y[4] = none
    y[6] = none if y.dim() == 1 else y[6].index_fill(0, torch.tensor([1, 2]), none)
    counts = ~y.isnan() & (y != none)
    torch.manual_seed(0)
    model, dataset, plugin = nn.Linear(4, 3).double(), data_of(y), EWCPlugin(1.0, fisher=fisher, batch_size=4)
    train(model, dataset, criterion, plugin)
    x = dataset.tensors[0]
    with torch.no_grad():
        mean = mean_of(model(x))
    if y.dim() == 1:
        targets, counts = functional.one_hot(torch.where(counts, y, 0), 3), counts[:, None].expand(-1, 3)
    else:
        targets = torch.where(counts, y, 0)
    variance = torch.ones_like(mean) if case == "numbers" else mean * (1 - mean)
    scores = torch.where(counts, targets - mean, 0)
    samples = counts.any(1)
    if fisher == "batched":
        chunks = [slice(start, start + 4) for start in range(0, SAMPLES, 4)]
        expected = sum((scores[c].T @ x[c] / samples[c].sum()).square() for c in chunks) / len(chunks)
    else:
        weights = scores.square() if fisher == "empirical" else torch.where(counts, variance, 0)
        expected = weights.T @ x.square() / samples.sum()
    torch.testing.assert_close(plugin.importances["weight"], expected, rtol=1e-6, atol=1e-12)


class Counting(nn.Module):
    """A criterion whose first calls count less, and which keeps a running mean."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_buffer("mean", torch.zeros((), dtype=torch.double))

    def forward(self, f, y):
        self.calls += 1
        self.mean += f.detach().mean()
        return functional.cross_entropy(f, y) * min(1.0, 0.1 * self.calls)


@pytest.mark.parametrize("fisher", ["exact", "batched"])
def test_a_criterion_with_a_state_is_asked_in_a_copy(fisher):
    criterion, without = Counting(), Counting()
    model, plain = network(3), network(3)
    torch.manual_seed(3)
    train(model, data_of(LABELS), criterion, EWCPlugin(0.0, fisher=fisher))
    torch.manual_seed(3)
    train(plain, data_of(LABELS), without, MASPlugin(0.0))
    assert criterion.calls == without.calls > 0
    assert torch.equal(criterion.mean, without.mean)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


SOFTMAX = functools.partial(torch.softmax, dim=1)  # no module, which would run as one of the layers


class ByMode(nn.Sequential):
    """Something else in eval mode; with dropout that no module shows."""

    def __init__(self, in_eval, drop=0.0):
        super().__init__(*network(3))
        self.in_eval, self.drop = in_eval, drop

    def forward(self, x):
        f = functional.dropout(super().forward(x), self.drop, self.training)
        return f if self.training else self.in_eval(f)


@pytest.mark.parametrize(
    ("in_eval", "drop", "bias", "criterion", "y"),
    [
        (SOFTMAX, 0.0, 0.0, nn.CrossEntropyLoss(), LABELS),
        (SOFTMAX, 0.0, 10.0, nn.CrossEntropyLoss(), LABELS),
        (SOFTMAX, 0.5, 0.0, nn.CrossEntropyLoss(), LABELS),
        (torch.sigmoid, 0.0, 0.0, nn.BCEWithLogitsLoss(), numbers(3).round()),
    ],
    ids=["softmax", "softmax of what is above 1", "softmax and dropout", "sigmoid"],
)
def test_logits_in_training_and_probabilities_in_eval_mode_are_refused(in_eval, drop, bias, criterion, y):
    model = ByMode(in_eval, drop)
    with torch.no_grad():
        model[2].bias += bias
    with pytest.raises(ValueError, match="nothing was trained: the network gives logits in training and their prob"):
        train(model, data_of(y), criterion, EWCPlugin(1.0))
    for other in (lambda f: f.clamp(0.1, 0.9), lambda f: torch.cat([in_eval(f)[:, :1], f[:, 1:]], 1)):
        assert train(ByMode(other, drop), data_of(y), criterion, EWCPlugin(1.0))


@pytest.mark.parametrize(
    ("criterion", "likelihood", "said"),
    [
        (lambda f, y: functional.cross_entropy(f / 4, y), "categorical", 1),
        (lambda f, y: functional.cross_entropy(f, y), "categorical", 0),
        (lambda f, y: functional.cross_entropy(f, y), None, 0),
    ],
)
def test_a_criterion_that_changes_the_outputs_first_is_named(criterion, likelihood, said):
    """The Fisher is of the outputs as they are."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(network(3), data_of(LABELS), criterion, EWCPlugin(1.0, likelihood=likelihood))
    found = [warning for warning in seen if "the Fisher is that of the outputs as they are" in str(warning.message)]
    assert len(found) == said
