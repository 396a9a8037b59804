"""The penalties under every network and stream that people train, against autograd one sample at a time."""

import warnings

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream
from avalanche.logging import BaseLogger
from avalanche.models.utils import avalanche_forward
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn

from engrams.benchmarks.data.loading import TensorClassificationDataset
from engrams.benchmarks.data.streams import labelled
from engrams.strategies import EWCPlugin, MASPlugin
from engrams.strategies.baselines import L2Plugin
from tests import everyday_networks
from tests.everyday_networks import CLASSES, NETWORKS, ROWS, inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch cannot vectorise"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:.*SGD steps on the penalty"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]

SAMPLES = 8
MULTI_TASK = ("multi_head", "multi_head_with_its_own_forward", "ByTensor")


def benchmark(kind, name, classes=CLASSES):
    """Two experiences; blurred: the second has some of the first one's samples, too."""
    torch.manual_seed(0)
    x, y = inputs(kind, 2 * SAMPLES), torch.arange(2 * SAMPLES) % classes
    parts = [slice(0, SAMPLES), slice(SAMPLES - (3 if name == "blurred" else 0), 2 * SAMPLES)]
    return [(x[part], y[part]) for part in parts]


def stream(data, multi_task, online=False):
    sets = [TensorClassificationDataset.from_tensors(x, y, task * multi_task) for task, (x, y) in enumerate(data)]
    experiences = labelled(benchmark_from_datasets(train=sets)).train_stream
    if not online:
        return experiences
    parts = list(split_online_stream(experiences, experience_size=online, access_task_boundaries=True))
    for part in parts:  # splitting takes their labels off
        part.task_labels = part.origin_experience.task_labels
        part.classes_in_this_experience = part.origin_experience.classes_in_this_experience
    return parts


def one_at_a_time(model, samples, of_outputs):
    """mean_n sum_terms statistic(d term / d theta), by the definition: a batch of one, a backward pass a term."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    training = [module for module in model.modules() if module.training]
    buffers = [buffer.clone() for buffer in model.buffers()]
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x, _, task in samples:
        for weight, statistic, term in of_outputs(avalanche_forward(model, x[None], torch.tensor([task]))):
            before = [p.grad for p in parameters.values()]
            for p in parameters.values():
                p.grad = None
            term.backward(retain_graph=True)
            for name, p in parameters.items():
                if p.grad is not None:
                    total[name] += weight * statistic(p.grad.to_dense()) / len(samples)
            for p, grad in zip(parameters.values(), before, strict=True):
                p.grad = grad
    for module in training:
        module.training = True
    for buffer, old in zip(model.buffers(), buffers, strict=True):
        buffer.data.copy_(old)
    return total


def fisher_terms(outputs):
    log_p = outputs.log_softmax(1)[0]
    return [(p.exp().item(), torch.square, p) for p in log_p if p.exp() > 0]


def mas_terms(outputs):
    return [(1.0, torch.abs, outputs.square().sum())]


class Reference(SupervisedPlugin):
    """What the two importances are, where an experience ends."""

    def __init__(self, data, multi_task, joint):
        super().__init__()
        self.fisher, self.omega, self.parts = [], [], 0
        self.tasks = [[(x, y, task * multi_task) for x, y in zip(*part, strict=True)] for task, part in enumerate(data)]
        if joint:
            self.tasks = [[sample for task in self.tasks for sample in task]]

    def after_training_exp(self, strategy, **kwargs):
        self.parts += 1
        if self.parts == getattr(strategy.experience, "sub_stream_length", 1):
            self.parts = 0
            samples = self.tasks[len(self.fisher)]
            with torch.compiler.set_stance("force_eager"):
                self.fisher.append(one_at_a_time(strategy.model, samples, fisher_terms))
                self.omega.append(one_at_a_time(strategy.model, samples, mas_terms))


def plain_names(found):
    return {name.replace("_orig_mod.", "").removeprefix("module."): value for name, value in found.items()}


def learn(model, experiences, plugins, joint=False, **options):
    template = JointTraining if joint else Naive
    strategy = template(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=4,
        plugins=plugins,
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
        **{"criterion": nn.CrossEntropyLoss(), **options},
    )
    if joint:
        strategy.train(experiences)
    else:
        for experience in experiences:
            strategy.train(experience)
    return strategy


CASES = [(kind, network) for kind, networks in NETWORKS.items() for network in networks]


@pytest.mark.parametrize("stream_name", ["plain", "online", "joint", "blurred"])
@pytest.mark.parametrize(("kind", "network"), CASES, ids=[network.__name__ for _, network in CASES])
def test_importances_and_anchors_are_right(kind, network, stream_name):
    multi_task = network.__name__ in MULTI_TASK
    classes = 2 if network.__name__.startswith("incremental") else CLASSES
    data = benchmark(kind, stream_name, classes)
    torch.manual_seed(1)
    model = network()
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        model(data[0][0])
    if not multi_task:  # Avalanche's multi-task outputs are single, whatever the network is
        data = [(x.double() if x.is_floating_point() else x, y) for x, y in data]
        model = model.double()
    joint = stream_name == "joint"
    reference = Reference(data, multi_task, joint)
    ewc, mas, l2 = EWCPlugin(1e-3, "separate"), MASPlugin(1e-3), L2Plugin(1e-3)
    experiences = stream(data, multi_task, online=(4 if multi_task else 3) if stream_name == "online" else False)
    learn(model, experiences, [ewc, mas, l2, reference], joint)
    assert len(ewc.importances) == len(reference.fisher) == (1 if joint else 2)
    for found, expected in zip(ewc.importances, reference.fisher, strict=True):
        assert_same(found, plain_names(expected))
    omega = {}
    for expected in reference.omega:
        for name, value in plain_names(expected).items():
            old = torch.zeros_like(value)
            if name in omega:
                old[tuple(slice(0, size) for size in omega[name].shape)] = omega[name]
            omega[name] = old + value
    assert_same(mas.importances, omega)
    assert set(l2.importances) <= set(omega)
    now = plain_names(dict(model.named_parameters()))
    assert all(torch.equal(anchor, now[name]) for name, anchor in mas.anchors.items())


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert sum(value.sum() for value in expected.values()) > 0
    for name, value in expected.items():
        tight = 1.0 if value.dtype == torch.float64 else 1000.0
        atol = tight * (1e-7 * value.abs().max().item() + 1e-12)
        torch.testing.assert_close(found[name], value, rtol=tight * 1e-6, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, CLASSES, dtype=torch.cfloat))

    def forward(self, x):
        return (x.to(torch.cfloat) @ self.weight).abs()


class Outputs(nn.Module):
    """A linear layer whose outputs take some form."""

    def __init__(self, form):
        super().__init__()
        self.body, self.form = nn.Linear(6, CLASSES), form

    def forward(self, x):
        return self.form(self.body(x))


def frozen():
    return nn.Linear(6, CLASSES).requires_grad_(False)


REFUSED = [
    (frozen, "no parameter of the network requires a gradient"),
    (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, CLASSES)),
     r"'1' is a BatchNorm1d without running statistics \(track_running_stats=False\)"),
    (Complex, "'weight' is complex"),
    (lambda: Outputs(lambda f: f - f.mean(0)), "a sample's outputs depend on the other samples of its batch"),
    (lambda: Outputs(lambda f: (f, f)), "the network gives a tuple where outputs of shape"),
    (lambda: Outputs(lambda f: {"logits": f}), "the network gives a dict where outputs of shape"),
    (lambda: Outputs(lambda f: f[:, 0]), r"needs outputs \[N, K\] with K >= 2 .*; the network gives shape \[N\]"),
    (lambda: Outputs(lambda f: f[:, :1]), r"the network gives shape \[N, 1\]. One logit belongs to nn.BCEWithLogits"),
    (lambda: Outputs(lambda f: f[:, :, None]), r"Expected target size \[3, 1\], got \[3\]"),
    (lambda: Outputs(lambda f: f[:, None]), r"the network gives shape \[N, 1, 3\]"),
    (lambda: Outputs(lambda f: f.sum()), r"outputs of shape \(\) for 3 samples"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "message"), REFUSED)
def test_what_cannot_work_is_refused_by_name_before_anything_is_trained(network, message):
    torch.manual_seed(0)
    model = network()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    if not any(p.requires_grad for p in model.parameters()):
        plugins = [EWCPlugin(1.0), MASPlugin(1.0)]
    else:
        plugins = [EWCPlugin(1.0)]
    for plugin in plugins:
        with pytest.raises(
            ValueError, match=f"{type(plugin).__name__} cannot work here, and nothing was trained: .*{message}"
        ):
            learn(model, stream(benchmark(ROWS, "plain"), False), [plugin])
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_lambda_zero_is_naive_training_to_the_bit_for_networks_that_draw_random_numbers():
    """The check before training, and the measuring, leave the random numbers and the buffers as they were."""

    def trained(plugins):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, CLASSES))
        learn(model, stream(benchmark(ROWS, "plain"), False), plugins)
        return model.state_dict()

    plain, penalised = trained([]), trained([EWCPlugin(0.0), MASPlugin(0.0), L2Plugin(0.0)])
    assert all(torch.equal(plain[name], penalised[name]) for name in plain)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_network_is_checked_once_and_when_it_has_its_parameters(lazy):
    """Lazy layers get theirs in the first forward pass of training, from the same random numbers as ever."""

    class Checked(EWCPlugin):
        checks = 0

        def check(self, strategy):
            self.checks += 1
            super().check(strategy)

    def trained(plugins):
        torch.manual_seed(3)
        model = nn.Sequential(
            (nn.LazyLinear if lazy else lambda n: nn.Linear(6, n))(5), nn.ReLU(), nn.Linear(5, CLASSES)
        )
        learn(model, stream(benchmark(ROWS, "plain"), False), plugins)
        return model.state_dict()

    plugin = Checked(0.0)
    plain, penalised = trained([]), trained([plugin])
    assert all(torch.equal(plain[name], penalised[name]) for name in plain)
    assert plugin.checks == 1
    assert plugin.importances["0.weight"].shape == (5, 6)


def test_what_takes_one_sample_after_another_says_how_slow_it_is_once():
    data = benchmark("sequences", "plain")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn(everyday_networks.gru(), stream(data, False), [EWCPlugin(1.0), MASPlugin(1.0)])
    said = [str(w.message) for w in caught if "one sample after another" in str(w.message)]
    assert len(said) == 1
    assert "'body.weight_ih_l0'" in said[0]
    assert " ms a sample and signal" in said[0]
