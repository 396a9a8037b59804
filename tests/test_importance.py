"""The Fisher information against brute force: autograd, one sample and one class at a time."""

import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.models import IncrementalClassifier, SimpleMLP, as_multitask
from avalanche.training.plugins import EWCPlugin as AvalancheEWCPlugin
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from engrams.strategies import general_gradients, gradient_plan, layer_gradients, per_sample_gradients
from engrams.strategies.importance import diagonal_fisher, mas_importance, refuse_too_many
from engrams.strategies.minibatches import Minibatch
from engrams.strategies.per_sample_gradients import Measurement, mean_over_samples
from engrams.strategies.undisturbed import evaluation_mode, same_random_numbers

SAMPLES, CLASSES = 12, 4


def mlp():
    return SimpleMLP(num_classes=CLASSES, input_size=16, hidden_size=7, hidden_layers=2, drop_rate=0.5)


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 5, 2, padding=1, dilation=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


def multi_head():
    model = as_multitask(mlp(), "classifier")
    for task in ("1", "2"):
        model.classifier.classifiers[task] = IncrementalClassifier(7, CLASSES, masking=False)
        model.classifier.register_buffer(f"active_units_T{task}", torch.ones(CLASSES, dtype=torch.int8))
    model.classifier.active_units_T0[:] = torch.tensor([1, 1, 1, 0])  # one class of task 0 not met yet: masked
    return model


def batch_norm():
    """No short cut: batch norm has parameters of its own."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, CLASSES))


def tied():
    """No short cut: one layer runs twice, and another shares its weight."""
    layer, twin = nn.Linear(16, 16), nn.Linear(16, 16)
    twin.weight = layer.weight
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer, nn.Tanh(), twin, nn.ReLU(), nn.Linear(16, CLASSES))


class Folded(nn.Module):
    """No short cut: the linear layer sees four rows a sample."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.b(self.a(x.reshape(-1, 4)).tanh().reshape(len(x), -1))


class Outside(nn.Module):
    """No short cut: weights are used outside of their layers, of which one never runs and one leads nowhere.

    A last one runs without gradients.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.aside = nn.Linear(16, 5), nn.Linear(16, CLASSES), nn.Linear(5, CLASSES)
        self.never, self.still = nn.Linear(5, CLASSES), nn.Linear(5, 2)

    def forward(self, x):
        h = self.a(x.flatten(1)).tanh()
        self.aside(h)
        with torch.no_grad():
            self.still(h)
        return self.b(h @ self.a.weight) + h @ (self.aside.weight + self.never.weight).T


class Aside(nn.Module):
    """A layer runs whose output the result does not depend on."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.aside = nn.Linear(16, 5), nn.Linear(5, CLASSES), nn.Linear(5, 2)

    def forward(self, x):
        h = self.a(x.flatten(1)).tanh()
        self.aside(h)
        return self.b(h)


class Doubled(nn.Linear):
    """No short cut: a subclass that computes otherwise."""

    def forward(self, x):
        return 2 * super().forward(x.flatten(1))


def doubled():
    return Doubled(16, CLASSES)


class OfAConstant(nn.Module):
    """No short cut: layers see no sample, but as many numbers as there are samples when layers are tried; or just one.

    What the convolution sees is no batch at all, so that its rule cannot be followed.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(16, 3), nn.Linear(3, CLASSES)
        self.table, self.filter = nn.Embedding(4, 3), nn.Conv1d(3, 3, 2)
        self.register_buffer("constant", torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, x):
        one = self.a(self.constant).tanh() + self.table(torch.tensor(2))
        return self.c(self.b(x.flatten(1)) * (one + self.filter(torch.outer(self.constant, self.constant)).sum(1)))


def one_bias():
    """No short cut for a bias that all outputs share."""
    network = mlp()
    network.classifier.bias = nn.Parameter(torch.zeros(1))
    return network


def weight_norm():
    """No short cut: the weight is a function of other parameters."""
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(16, CLASSES)))


def partly_frozen():
    """Of one layer the weight learns, of the other the bias."""
    network = mlp()
    network.features[0].bias.requires_grad_(False)
    network.classifier.weight.requires_grad_(False)
    return network


MODELS = [
    *(mlp, cnn, multi_head, batch_norm, tied, Folded, Outside, Aside, OfAConstant, doubled, one_bias, weight_norm),
    partly_frozen,
]


@pytest.fixture
def problem(request):
    """A model in double precision and a dataset of (x, y, task label) for it."""
    torch.manual_seed(0)
    model = request.param()
    x = torch.randn(SAMPLES, 1, 4, 4)
    model(x[:2], 0) if request.param is multi_head else model(x[:2])
    y = torch.randint(0, 3 if request.param is multi_head else CLASSES, (SAMPLES,))
    tasks = torch.arange(SAMPLES) % 2 if request.param is multi_head else torch.zeros(SAMPLES, dtype=torch.long)
    return model.double(), TensorDataset(x.double(), y, tasks)


def outputs_of(model, x, task):
    return model(x[None], int(task)) if hasattr(model, "known_train_tasks_labels") else model(x[None])


def brute_force(model, dataset, fisher):
    """F = 1/N sum_n sum_y w_ny (d log p(y|x_n))^2, by the definition."""
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x, y, task in dataset:
        p = outputs_of(model, x, task).softmax(1)[0].detach()
        weights = p if fisher == "exact" else functional.one_hot(y, len(p)).to(p)
        for c, weight in enumerate(weights):
            if weight == 0:
                continue
            model.zero_grad()
            outputs_of(model, x, task).log_softmax(1)[0, c].backward()
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    total[name] += weight * parameter.grad**2 / len(dataset)
    return total


def assert_same(found, expected, rtol=1e-5):
    assert found.keys() == expected.keys()
    assert not any(tensor.requires_grad for tensor in found.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("problem", MODELS, indirect=True)
def test_equals_brute_force(problem, fisher):
    model, dataset = problem
    model.train()
    parts = dict(model.named_parameters(remove_duplicate=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch cannot vectorise")
        found = diagonal_fisher(model, dataset, fisher)
    assert model.training, "the model's own mode is restored"
    assert not any(module._forward_hooks for module in model.modules())
    now = dict(model.named_parameters(remove_duplicate=False))
    assert all(now[name] is part for name, part in parts.items()), "and what it is made of"
    assert_same(found, brute_force(model, dataset, fisher))
    assert sum(tensor.sum() for tensor in found.values()) > 0


@pytest.mark.parametrize("problem", [multi_head], indirect=True)
def test_without_a_column_of_tasks_all_is_of_task_0(problem):
    model, dataset = problem
    x, y, _ = dataset.tensors
    found = diagonal_fisher(model, TensorDataset(x, y))
    of_task_0 = TensorDataset(x, y, torch.zeros(SAMPLES, dtype=torch.long))
    assert_same(found, brute_force(model, of_task_0, "exact"))


@pytest.mark.parametrize("problem", MODELS, indirect=True)
def test_chunks_and_both_ways_agree(problem, monkeypatch):
    model, dataset = problem
    whole = diagonal_fisher(model, dataset)
    monkeypatch.setattr(per_sample_gradients, "SAMPLES_AT_ONCE", 5)
    for module in (per_sample_gradients, general_gradients):
        monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 1)
    monkeypatch.setattr(layer_gradients, "NUMBERS_WRITTEN_OUT", 1)
    assert_same(diagonal_fisher(model, dataset), whole, rtol=1e-9)
    monkeypatch.setattr(gradient_plan, "has_rule", lambda layer: False)
    assert_same(diagonal_fisher(model, dataset), whole, rtol=1e-9)
    monkeypatch.setattr(gradient_plan, "can_vectorise", lambda *_: False)
    assert_same(diagonal_fisher(model, dataset), whole, rtol=1e-9)


@pytest.mark.parametrize(
    ("problem", "rest"),
    [
        (mlp, set()),
        (cnn, set()),
        (multi_head, set()),
        (batch_norm, set()),
        (Aside, set()),
        (partly_frozen, set()),
        (tied, {"1.weight", "1.bias", "5.bias"}),
        (Folded, {"a.weight", "a.bias"}),
        (Outside, {"a.weight", "aside.weight", "never.weight", "still.weight", "still.bias"}),
        (OfAConstant, {"a.weight", "a.bias", "table.weight", "filter.weight", "filter.bias"}),
        (one_bias, {"classifier.bias"}),
        (weight_norm, {"1.bias", "1.parametrizations.weight.original0", "1.parametrizations.weight.original1"}),
    ],
    indirect=["problem"],
)
def test_the_general_way_is_taken_for_those_parameters_only_that_need_it(problem, rest):
    """And by torch's vectorisation; and no layer is looked at that has none of the others."""
    model, dataset = problem
    model.eval()
    x, y, tasks = dataset[:2]
    found = gradient_plan.plan(model, Minibatch(x, y, int(tasks[0]), 0))
    assert found.rest.keys() == rest
    assert found.vectorised == bool(rest)
    for name, layer in found.layers.items():
        assert {f"{name}.{attribute}".removeprefix(".") for attribute, _ in layer.named_parameters()} - rest


BY_ANOTHER_WAY = {
    "not before": lambda m, x: m.b(-x),
    "by its forward": lambda m, x: m.b.forward(-x),
    "as a function": lambda m, x: nn.functional.linear(-x, m.b.weight, m.b.bias),
    "as a function, too": lambda m, x: nn.functional.linear(-x, m.a.weight),
}


class Later(nn.Module):
    """A layer runs otherwise for samples whose first number is above 2."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)
        self.plain = nn.Linear(16, 16)
        if how == "another with its weight":
            self.b.weight = self.a.weight

    def forward(self, x):
        x = x.flatten(1)
        h, such = self.a(x).tanh(), x[:, 0] > 2
        if such.any():
            if self.how in BY_ANOTHER_WAY:
                h = h + torch.where(such[:, None], BY_ANOTHER_WAY[self.how](self, x), 0)
            elif self.how == "for some only":
                h = h.index_add(0, such.nonzero().flatten(), self.b(x[such]))
            else:
                again = self.a(h) if self.how == "twice" else self.b(-x)
                h = h + torch.where(such[:, None], again, 0)
        return self.c(self.plain(h).tanh())


@pytest.mark.parametrize(
    ("how", "left", "told_of"),
    [
        ("twice", "a", "'a.weight', 'a.bias'"),
        ("for some only", "b", "'b.weight', 'b.bias'"),
        ("not before", "b", "'b.weight', 'b.bias'"),
        ("by its forward", "b", "'b.weight', 'b.bias'"),
        ("as a function", "b", "'b.weight', 'b.bias'"),
        ("as a function, too", "a", "'a.weight', 'a.bias'"),
        ("another with its weight", None, "'a.weight', 'a.bias', 'b.bias'"),
    ],
)
def test_a_layer_that_runs_otherwise_after_the_first_samples_is_measured_rightly(how, left, told_of):
    """And no other takes the general way, which torch cannot vectorise: the network asks which samples are such."""
    torch.manual_seed(0)
    model = Later(how).double().eval()
    x = torch.randn(SAMPLES, 1, 4, 4).double().clamp(-1, 1)
    x[7, 0, 0, 0] = 3
    dataset = TensorDataset(x, torch.arange(SAMPLES) % CLASSES, torch.zeros(SAMPLES))
    with pytest.warns(UserWarning, match=f"the importance of {told_of} is measured one sample after another"):
        found = diagonal_fisher(model, dataset)
    assert_same(found, brute_force(model, dataset, "exact"))
    if left:
        first = Minibatch(x[:3], None, 0, 0)
        plan = gradient_plan.plan(model, first)
        assert not plan.rest
        plan.leave([left], model, first)
        assert plan.rest.keys() == {f"{left}.weight", f"{left}.bias"}
        assert left not in plan.layers
        assert not plan.vectorised


@pytest.mark.parametrize("outputs", [1, CLASSES])
def test_a_last_batch_of_one_sample_may_come_squeezed(outputs):
    class Squeezed(nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze()

    torch.manual_seed(0)
    plain, squeezed = (kind(5, outputs).double() for kind in (nn.Linear, Squeezed))
    squeezed.load_state_dict(plain.state_dict())
    dataset = TensorDataset(torch.randn(4, 5).double(), torch.arange(4) % CLASSES)
    if outputs > 1:
        found, expected = (diagonal_fisher(model, dataset, samples_at_once=3) for model in (squeezed, plain))
    else:
        found, expected = (mas_importance(model, dataset, samples_at_once=3) for model in (squeezed, plain))
    assert_same(found, expected)


class OfParts(nn.Module):
    """Takes a scale for all samples, and what kind they are of, besides the samples themselves."""

    def __init__(self):
        super().__init__()
        self.linear, self.shift = nn.Linear(16, CLASSES), nn.Parameter(torch.ones(16))

    def forward(self, inputs):
        assert isinstance(inputs["kind"], str | float)
        return self.linear((inputs["x"].flatten(1) - self.shift).tanh() * inputs["scale"])


class Parts(TensorDataset):
    kind: str | float

    def collate_fn(self, samples):
        x, y = (torch.stack(column) for column in zip(*samples, strict=True))
        return {"kind": self.kind, "scale": torch.tensor(2.0), "x": x}, y


@pytest.mark.parametrize("kind", ["of whatever kind", 3.0])
def test_what_is_the_same_for_all_samples_is_no_samples_own(kind):
    torch.manual_seed(0)
    model, x = OfParts(), torch.randn(SAMPLES, 2, 2, 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch cannot vectorise")
        parts = Parts(x, torch.arange(SAMPLES))
        parts.kind = kind
        found = mas_importance(model, parts)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for one in x:
        model.zero_grad()
        model({"x": one[None], "scale": torch.tensor(2.0), "kind": "another"}).square().sum().backward()
        for name, p in model.named_parameters():
            expected[name] += p.grad.abs() / SAMPLES
    assert_same(found, expected)


@pytest.mark.parametrize("statistic", [torch.abs, torch.square])
@pytest.mark.parametrize("problem", [mlp, Folded], indirect=True)
def test_the_statistics_of_several_signals_add_up(problem, statistic):
    model, dataset = problem
    model.eval()
    x, _, _ = dataset.tensors

    def signals(outputs, batch):
        return torch.stack([outputs.sin(), outputs.square(), torch.ones_like(outputs)]), len(outputs)

    found = mean_over_samples(model, Measurement(TensorDataset(x), None, 1, None, 0), signals, statistic)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for one in x:
        outputs = model(one[None])
        for signal in signals(outputs.detach(), None)[0]:
            gradients = torch.autograd.grad(outputs, list(model.parameters()), signal, retain_graph=True)
            for name, gradient in zip(expected, gradients, strict=True):
                expected[name] += statistic(gradient) / SAMPLES
    assert_same(found, expected)


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="came with torch 2.6")
def test_layers_within_what_was_compiled_and_run_have_their_rules():
    body = torch.compile(nn.Sequential(nn.Linear(16, 5), nn.ReLU()), backend="eager")
    model, x = nn.Sequential(nn.Flatten(), body, nn.Linear(5, CLASSES)), torch.randn(2, 1, 4, 4)
    model.eval()(x).sum().backward()
    with evaluation_mode(model):
        assert not gradient_plan.plan(model, Minibatch(x, None, 0, 0)).rest


def test_what_is_drawn_within_is_drawn_again_afterwards():
    def drawn():
        return torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002

    with same_random_numbers():
        expected = drawn()
    assert drawn() == expected


def scripted_too(test):
    for said in ("ignore::DeprecationWarning", "ignore:`torch.jit.script`", "ignore:torch cannot vectorise"):
        test = pytest.mark.filterwarnings(said)(test)
    return pytest.mark.parametrize("scripted", [False, True])(test)


@scripted_too
def test_every_module_has_its_own_mode_again(scripted):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, CLASSES))
    model[2].eval()
    model = torch.jit.script(model) if scripted else model
    for measure in (diagonal_fisher, mas_importance):
        measure(model, TensorDataset(torch.randn(4, 1, 4, 4), torch.arange(4)))
        assert [module.training for module in model.modules()] == [True, True, True, False, True, True]


def test_a_lazy_module_that_gets_its_parameters_within_is_as_elsewhere():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.LazyLinear(CLASSES))
    with evaluation_mode(model):
        model(torch.zeros(2, 5))
    assert (model[0].in_features, model[1].num_features, model[2].in_features) == (5, 3, 3)
    assert all(module.training for module in model.modules())
    dataset = TensorDataset(torch.randn(6, 5), torch.arange(6) % CLASSES)
    assert diagonal_fisher(model, dataset)["0.weight"].shape == (3, 5)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("chosen", [False, True])
def test_on_a_gpu_what_its_user_chose_stands_but_for_fewer_bits(recurrent, chosen):
    """And a recurrent layer has no backward pass in eval mode, but without cuDNN."""
    seen, cudnn = [], torch.backends.cudnn

    def settings():
        return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32

    class Noting(nn.Sequential):
        def forward(self, x):
            seen.append(settings())
            return super().forward(x)[0][:, -1] if recurrent else super().forward(x)[:, -1]

    model = Noting(nn.RNN(3, CLASSES, batch_first=True) if recurrent else nn.Linear(3, CLASSES))
    for measure in (diagonal_fisher, mas_importance):
        with cudnn.flags(enabled=True, benchmark=chosen, deterministic=chosen, allow_tf32=True):
            measure(model, TensorDataset(torch.randn(4, 2, 3), torch.arange(4)))
            assert settings() == (True, chosen, chosen, True)
    if recurrent:
        assert {(enabled, tf32) for enabled, _, _, tf32 in seen} == {(False, False)}
    else:
        assert set(seen) == {(True, chosen, chosen, False)}


@pytest.mark.parametrize("problem", [mlp], indirect=True)
def test_a_minibatch_is_of_32_samples_unless_it_is_said(problem):
    model, dataset = problem
    model.eval()
    many = torch.utils.data.ConcatDataset([dataset] * 6)
    for measure in (partial(diagonal_fisher, fisher="batched"), partial(mas_importance, variant="batched")):
        found, expected, other = (measure(model, many, **size) for size in ({}, {"batch_size": 32}, {"batch_size": 33}))
        assert_same(found, expected)
        assert not torch.allclose(found["classifier.weight"], other["classifier.weight"])


@pytest.mark.parametrize("problem", [mlp], indirect=True)
def test_an_importance_is_detached(problem):
    for measure in (diagonal_fisher, mas_importance, partial(mas_importance, variant="local")):
        assert not any(value.requires_grad for value in measure(*problem).values())


def test_more_outputs_than_an_exact_fisher_can_have_backward_passes_are_refused():
    many = TensorDataset(torch.randn(2, 1))
    with pytest.raises(ValueError, match=r"4,097 of them a sample \(at most 4,096\): fisher='sampled' has one"):
        diagonal_fisher(nn.Linear(1, 4097), many)
    assert diagonal_fisher(nn.Linear(1, 4097), many, "sampled")
    refuse_too_many(torch.empty(1, 4096))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, CLASSES)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x.flatten(1))


class CountingAnew(Counting):
    def forward(self, x):
        self.calls = self.calls + 1
        return self.layer(x.flatten(1))


@scripted_too
@pytest.mark.parametrize("kind", [Counting, CountingAnew])
def test_a_buffer_that_the_network_changes_is_as_it_was(kind, scripted):
    model = torch.jit.script(kind()) if scripted else kind()
    before = model.calls
    diagonal_fisher(model, TensorDataset(torch.randn(4, 1, 4, 4), torch.arange(4) % CLASSES))
    assert model.calls == 0
    assert scripted or model.calls is before


@pytest.mark.parametrize("problem", [mlp], indirect=True)
def test_sampled_converges_to_exact(problem):
    model, dataset = problem
    exact = diagonal_fisher(model, dataset)
    repeated = torch.utils.data.ConcatDataset([dataset] * 2000)
    torch.manual_seed(1)
    few = diagonal_fisher(model, torch.utils.data.ConcatDataset([dataset] * 20), "sampled")
    many = diagonal_fisher(model, repeated, "sampled")

    def error(found):
        return sum((found[n] - exact[n]).square().sum() for n in exact) / sum(e.square().sum() for e in exact.values())

    assert error(many) < 1e-3  # 24,000 draws
    assert error(many) < error(few) / 10


@pytest.mark.parametrize("problem", [mlp], indirect=True)
def test_batched_is_what_avalanche_computes_and_no_fisher(problem):
    model, dataset = problem
    plugin = AvalancheEWCPlugin(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    theirs = plugin.compute_importances(model, nn.CrossEntropyLoss(), optimizer, dataset, torch.device("cpu"), 4)
    ours = diagonal_fisher(model, dataset, "batched", batch_size=4)
    assert_same(ours, {name: theirs[name].data.double() for name in theirs}, rtol=1e-4)  # theirs are float32
    empirical = diagonal_fisher(model, dataset, "empirical")
    assert_same(diagonal_fisher(model, dataset, "batched", batch_size=1), empirical)  # a batch of one is a sample
    model.zero_grad()
    x, y, _ = dataset.tensors
    functional.cross_entropy(model.eval()(x), y).backward()
    of_one = diagonal_fisher(model, dataset, "batched", batch_size=SAMPLES)
    assert_same(of_one, {name: p.grad.square() for name, p in model.named_parameters()})
    # The square of a mean is at most the mean of squares, and smaller where gradients differ in sign.
    assert all((ours[name] <= empirical[name] * (1 + 1e-9)).all() for name in ours)
    assert sum(o.sum() for o in ours.values()) < 0.7 * sum(e.sum() for e in empirical.values())


def test_gaussian_likelihood_of_a_linear_model_is_its_design_matrix():
    torch.manual_seed(0)
    x, y = torch.randn(50, 3, dtype=torch.double), torch.randn(50, 2, dtype=torch.double)
    model = nn.Linear(3, 2).double()
    found = diagonal_fisher(model, TensorDataset(x, y), likelihood="gaussian", noise_std=0.5)
    expected = {"weight": (x.square().mean(0) / 0.25).expand(2, 3), "bias": torch.full((2,), 4.0, dtype=torch.double)}
    assert_same(found, expected)
    residual = (y - model(x)).detach() / 0.25
    empirical = diagonal_fisher(model, TensorDataset(x, y), "empirical", likelihood="gaussian", noise_std=0.5)
    assert_same(
        empirical,
        {"weight": (residual[:, :, None] * x[:, None]).square().mean(0), "bias": residual.square().mean(0)},
    )
    many = torch.utils.data.ConcatDataset([TensorDataset(x, y)] * 400)
    sampled = diagonal_fisher(model, many, "sampled", likelihood="gaussian", noise_std=0.5)
    assert_same(sampled, expected, rtol=0.1)


@pytest.mark.parametrize("problem", [mlp], indirect=True)
def test_frozen_parameters_and_buffers_have_none(problem):
    model, dataset = problem
    full = diagonal_fisher(model, dataset)
    model.features[0].weight.requires_grad_(False)
    found = diagonal_fisher(model, dataset)
    assert "features.0.weight" not in found
    del full["features.0.weight"]
    assert_same(found, full)


@pytest.mark.parametrize("problem", [multi_head], indirect=True)
def test_a_head_that_was_not_used_has_zeros(problem):
    model, dataset = problem
    found = diagonal_fisher(model, dataset)  # tasks 0 and 1 only
    heads = {task: found[f"classifier.classifiers.{task}.classifier.weight"] for task in "012"}
    assert heads["0"].sum() > 0
    assert heads["1"].sum() > 0
    assert (heads["2"] == 0).all()
    assert (heads["0"][3] == 0).all(), "a masked unit has no importance"


@pytest.mark.parametrize("problem", [mlp], indirect=True)
def test_fisher_samples(problem):
    model, dataset = problem
    one = torch.utils.data.Subset(dataset, [4])
    assert_same(diagonal_fisher(model, one), brute_force(model, one, "exact"))
    assert_same(diagonal_fisher(model, dataset, fisher_samples=100), diagonal_fisher(model, dataset))
    torch.manual_seed(3)
    some = diagonal_fisher(model, dataset, fisher_samples=5)
    torch.manual_seed(3)
    chosen = torch.randperm(SAMPLES)[:5]
    assert_same(some, brute_force(model, torch.utils.data.Subset(dataset, chosen.tolist()), "exact"))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    diagonal_fisher(model, dataset, fisher_samples=SAMPLES)
    assert torch.rand(1) == expected, "where all are taken none is drawn"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fisher": "true"}, "fisher must be one of exact, sampled, empirical, batched; got 'true'"),
        ({"fisher_samples": 0}, "fisher_samples must be at least 1"),
        ({"likelihood": "poisson"}, "likelihood must be one of"),
        ({"likelihood": "gaussian", "noise_std": 0.0}, "noise_std must be greater than 0"),
    ],
)
@pytest.mark.parametrize("problem", [mlp], indirect=True)
def test_options_out_of_range_are_refused(problem, options, message):
    with pytest.raises(ValueError, match=message):
        diagonal_fisher(*problem, **options)


@pytest.mark.parametrize("problem", [mlp], indirect=True)
def test_outputs_that_do_not_fit_are_refused_with_the_first_minibatch(problem):
    model, dataset = problem
    model.classifier = nn.Linear(7, 1).double()
    passes = torch.zeros(9, dtype=torch.long)  # by their samples; what a hook adds to a list is taken back

    def count(module, args):
        passes[len(args[0])] += 1

    model.register_forward_pre_hook(count)
    with pytest.raises(ValueError, match=r"the network gives shape \[N, 1\]"):
        diagonal_fisher(model, dataset, "batched", batch_size=5)
    assert passes.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("fisher", ["exact", "batched"])
@pytest.mark.parametrize(
    ("factor", "why"),
    [
        (float("nan"), "the network's outputs are not finite there"),
        (1e30, r"it is too large for its type \(torch.float32\)"),
    ],
)
def test_why_an_importance_is_not_finite_is_said(factor, why, fisher):
    x = torch.randn(6, 3)
    x[4] *= factor
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    with pytest.raises(ValueError, match=f"of 'weight' is not finite .* 4.*: {why}"):
        diagonal_fisher(model, TensorDataset(x, torch.zeros(6).long()), fisher, batch_size=2)


class Branch(nn.Module):
    """No short cut, and nothing that torch can vectorise."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return functional.linear(x if x.sum().item() < 1e9 else -x, self.weight, self.bias)


@pytest.mark.filterwarnings("ignore:torch cannot vectorise")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 3), Branch], ids=["by rule", "one by one"])
def test_in_half_precision_sums_go_on_growing_and_squares_are_not_lost(make, dtype):
    """The mean over equal samples is a sample's own, in float32; its squares are below float16's smallest number."""
    torch.manual_seed(0)
    model, x = make().to(dtype), 1e-3 * torch.randn(1, 6)
    data = TensorDataset(x.to(dtype).expand(400, 6), torch.zeros(400, dtype=torch.long))
    found = diagonal_fisher(model, data)
    p = model(x.to(dtype)).detach().float().softmax(1)[0]
    expected = {"weight": (p * (1 - p))[:, None] * x.to(dtype).float().square(), "bias": p * (1 - p)}
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=0.02, atol=0)


@pytest.mark.parametrize("fisher", ["exact", "batched"])
def test_sparse_gradients_are_as_dense_ones(fisher):
    torch.manual_seed(0)
    x, y = torch.randint(9, (10, 4)), torch.arange(10) % 3
    dense = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(12, 3))
    sparse = nn.Sequential(nn.Embedding(9, 3, sparse=True), nn.Flatten(), nn.Linear(12, 3))
    sparse.load_state_dict(dense.state_dict())
    found, expected = (diagonal_fisher(model, TensorDataset(x, y), fisher, batch_size=4) for model in (sparse, dense))
    assert_same(found, expected, rtol=1e-5)
