"""EWC against closed forms, through Avalanche's own hooks, without the rest of the suite."""

import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.evaluation.metrics import loss_metrics
from avalanche.logging import BaseLogger
from avalanche.models import IncrementalClassifier, SimpleMLP, as_multitask
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.utils.data import TensorDataset

from engrams.benchmarks.data.loading import TensorClassificationDataset
from engrams.benchmarks.data.streams import labelled
from engrams.strategies import EWCPlugin

TASKS, SAMPLES, FEATURES = 5, 64, 4


def quiet():
    return EvaluationPlugin(loss_metrics(epoch=True), loggers=[BaseLogger()])


# --- linear regression: the Laplace approximation is exact, so the answer is known ------------------------------------


def regression_tasks():
    """Tasks of equal size whose designs are orthogonal (X'X = N I), each with its own true weights."""
    torch.manual_seed(0)
    tasks = []
    for _ in range(TASKS):
        x = torch.linalg.qr(torch.randn(SAMPLES, FEATURES, dtype=torch.double)).Q * SAMPLES**0.5
        tasks.append((x, x @ torch.randn(FEATURES, 1, dtype=torch.double)))
    return tasks


def learn_regression(tasks, plugin):
    """Full-batch gradient descent on the mean negative log-likelihood until it has converged."""
    model = nn.Linear(FEATURES, 1, bias=False).double()
    strategy = SupervisedTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.15),
        criterion=lambda output, y: (output - y).square().mean() / 2,
        train_mb_size=SAMPLES,
        train_epochs=150,
        plugins=[plugin],
        evaluator=quiet(),
    )
    for experience in benchmark_from_datasets(
        train=[make_avalanche_dataset(TensorDataset(x, y)) for x, y in tasks]
    ).train_stream:
        strategy.train(experience)
    return model.weight.detach().squeeze()


def joint_least_squares(tasks):
    x, y = (torch.cat(parts) for parts in zip(*tasks, strict=True))
    return torch.linalg.lstsq(x, y).solution.squeeze()


@pytest.mark.parametrize("count", [2, TASKS])
def test_corrected_ends_at_the_joint_solution_of_linear_regression(count):
    tasks = regression_tasks()[:count]
    found = learn_regression(tasks, EWCPlugin(1.0, "corrected", likelihood="gaussian"))
    torch.testing.assert_close(found, joint_least_squares(tasks), rtol=1e-4, atol=1e-4)


def test_separate_counts_old_tasks_more_than_once_from_three_tasks_on():
    tasks = regression_tasks()
    two = learn_regression(tasks[:2], EWCPlugin(1.0, "separate", likelihood="gaussian"))
    torch.testing.assert_close(two, joint_least_squares(tasks[:2]), rtol=1e-4, atol=1e-4)
    five = learn_regression(tasks, EWCPlugin(1.0, "separate", likelihood="gaussian"))
    assert (five - joint_least_squares(tasks)).norm() > 0.05


def test_online_is_the_decayed_least_squares_solution():
    """With precision gamma F*_{t-1} at every step the optimum is a weighted mean that can be written down."""
    tasks, gamma = regression_tasks()[:3], 0.5
    found = learn_regression(tasks, EWCPlugin(1.0, "online", gamma=gamma, likelihood="gaussian"))
    optima = [torch.linalg.lstsq(x, y).solution.squeeze() for x, y in tasks]
    theta, running = optima[0], 1.0  # F_k = X'X / N = 1 in every direction
    for optimum in optima[1:]:
        precision = gamma * running
        theta = (optimum + precision * theta) / (1 + precision)
        running = gamma * running + 1
    torch.testing.assert_close(found, theta, rtol=1e-4, atol=1e-4)


# --- classification ---------------------------------------------------------------------------------------------------


def stream(labels_of_experiences, task_incremental=False, samples=40):
    torch.manual_seed(0)
    experiences = [
        TensorClassificationDataset.from_tensors(
            torch.randn(samples, 6), torch.tensor(labels)[torch.arange(samples) % len(labels)], i * task_incremental
        )
        for i, labels in enumerate(labels_of_experiences)
    ]
    return labelled(benchmark_from_datasets(train=experiences)).train_stream


def mlp(classes=2):
    return SimpleMLP(num_classes=classes, input_size=6, hidden_size=5, hidden_layers=1, drop_rate=0)


def learn(model, experiences, *plugins, template=SupervisedTemplate, **options):
    strategy = template(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        plugins=list(plugins),
        evaluator=quiet(),
        **{"train_mb_size": 10, "train_epochs": 2, **options},
    )
    for experience in experiences:
        strategy.train(experience)
    return strategy


class Spy(EWCPlugin):
    """Keeps what each experience left behind."""

    def consolidate(self, importances, anchors):
        self.seen = [*getattr(self, "seen", []), (importances, anchors)]
        super().consolidate(importances, anchors)


@pytest.mark.parametrize("consolidation", ["separate", "corrected", "online"])
def test_penalty_equals_the_papers_sum(consolidation):
    gamma = 0.7 if consolidation == "online" else 1.0
    plugin = Spy(3.0, consolidation, gamma=gamma)
    model = learn(mlp(), stream([[0, 1]] * 3), plugin).model
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    now = dict(model.named_parameters())
    (f1, a1), (f2, a2), (f3, a3) = plugin.seen
    expected = 0.0
    for name, p in now.items():
        if consolidation == "separate":
            terms = [(f1[name], a1[name]), (f2[name], a2[name]), (f3[name], a3[name])]
        elif consolidation == "corrected":
            terms = [(f1[name] + f2[name] + f3[name], a3[name])]
        else:
            terms = [(gamma * (gamma * gamma * f1[name] + gamma * f2[name] + f3[name]), a3[name])]
        for importance, anchor in terms:
            expected += sum(
                3.0 / 2 * f * (t - a) ** 2
                for f, t, a in zip(importance.flatten(), p.flatten(), anchor.flatten(), strict=True)
            ).item()
    assert expected > 0
    assert plugin.penalty(model).item() == pytest.approx(expected, rel=1e-4)
    gradients = torch.autograd.grad(plugin.penalty(model), list(now.values()))
    name = "features.0.weight"
    by_hand = {
        "separate": sum(3.0 * f[name] * (now[name] - a[name]) for f, a in plugin.seen),
        "corrected": 3.0 * (f1[name] + f2[name] + f3[name]) * (now[name] - a3[name]),
        "online": 3.0 * gamma * (gamma**2 * f1[name] + gamma * f2[name] + f3[name]) * (now[name] - a3[name]),
    }[consolidation]
    torch.testing.assert_close(gradients[list(now).index(name)], by_hand)


def test_what_is_kept():
    corrected, separate = EWCPlugin(1.0), EWCPlugin(1.0, "separate")
    model = mlp()
    learn(model, stream([[0, 1]] * 3), corrected)
    learn(mlp(), stream([[0, 1]] * 3), separate)
    assert corrected.importances.keys() == corrected.anchors.keys() == dict(model.named_parameters()).keys()
    assert len(separate.importances) == len(separate.anchors) == 3
    for name, p in model.named_parameters():
        assert corrected.importances[name].shape == p.shape
        torch.testing.assert_close(corrected.anchors[name], p.detach())
        assert not corrected.anchors[name].requires_grad


def test_lambda_zero_is_naive_training_to_the_bit():
    """Which also says that measuring the Fisher changes neither the model nor the random numbers that follow."""
    experiences = stream([[0, 1]] * 3)
    learned = []
    for plugins in ([], [EWCPlugin(0.0)]):
        torch.manual_seed(5)
        learned.append(learn(mlp(), experiences, *plugins).model)
    for plain, penalised in zip(learned[0].parameters(), learned[1].parameters(), strict=True):
        assert torch.equal(plain, penalised)


def test_a_head_is_not_penalised_before_it_has_been_trained():
    plugin = Spy(1.0)
    model = as_multitask(mlp(), "classifier")
    learn(model, stream([[0, 1]] * 3, task_incremental=True), plugin)
    head = "classifier.classifiers.{}.classifier.weight".format
    for experience, (importances, _) in enumerate(plugin.seen):
        for task in range(3):
            present = importances.get(head(task), torch.zeros(1))
            assert (present.sum() > 0) == (task == experience), "the Fisher of task k is zero on the heads of others"


def test_layers_that_grow():
    plugin = EWCPlugin(1.0)
    model = mlp()
    model.classifier = IncrementalClassifier(5, initial_out_features=2)
    experiences = stream([[0, 1], [2, 3]])
    learn(model, [experiences[0]], plugin)
    before = plugin.importances["classifier.classifier.weight"]
    assert before.shape == (2, 5)
    model.classifier.adaptation(experiences[1])
    assert plugin.penalty(model).item() == 0, "new units begin with importance 0, old ones are at their anchor"
    with torch.no_grad():
        model.classifier.classifier.weight[2:] += 1
    assert plugin.penalty(model).item() == 0
    with torch.no_grad():
        model.classifier.classifier.weight[0, 0] += 2
    assert plugin.penalty(model).item() == pytest.approx((before[0, 0] / 2 * 4).item())
    learn(model, [experiences[1]], plugin)
    assert plugin.importances["classifier.classifier.weight"].shape == (4, 5)


def test_buffers_and_frozen_parameters_are_left_alone():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    model[0].weight.requires_grad_(False)
    plugin = EWCPlugin(1.0)
    learn(model, stream([[0, 1]] * 2), plugin)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert plugin.importances.keys() == trainable
    assert "0.weight" not in trainable


def test_the_importance_of_what_is_frozen_decays_as_all_others_do():
    """F* = gamma F* + F, with F = 0 where nothing is learned."""
    plugin, experiences = EWCPlugin(1.0, "online", gamma=0.5), stream([[0, 1]] * 3)
    model = mlp()
    strategy = learn(model, [experiences[0]], plugin)
    before = dict(plugin.importances)
    frozen = next(iter(dict(model.named_parameters())))
    model.get_parameter(frozen).requires_grad_(False)
    for decay, experience in zip((0.5, 0.25), experiences[1:], strict=True):
        strategy.train(experience)
        torch.testing.assert_close(plugin.importances[frozen], decay * before[frozen])
    model.get_parameter(frozen).requires_grad_(True)
    assert plugin.penalty(model).requires_grad


def test_a_penalty_that_sgd_cannot_follow_is_said_by_name():
    said = (
        r"EWCPlugin: in parameter group 0, learning rate 0.05 x penalty curvature .* exceeds 2 for '\w.*': SGD steps "
    )
    with pytest.warns(UserWarning, match=said), suppress(ValueError):  # it does diverge
        learn(mlp(), stream([[0, 1]] * 2), EWCPlugin(1e6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ewc_lambda": -1.0}, "ewc_lambda must be at least 0; got -1.0"),
        ({"ewc_lambda": float("nan")}, "must be a finite number; got nan"),
        ({"ewc_lambda": 1.0, "consolidation": "hussar"}, "consolidation must be one of separate, corrected, online"),
        ({"ewc_lambda": 1.0, "consolidation": "online", "gamma": 1.5}, r"gamma must be in \[0, 1\]; got 1.5"),
        ({"ewc_lambda": 1.0, "gamma": 0.5}, "gamma decays consolidation='online' only"),
        ({"ewc_lambda": 1.0, "fisher": "full"}, "fisher must be one of"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EWCPlugin(**arguments)


# --- alone ------------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.models import SimpleMLP
from avalanche.training import Naive
from engrams.strategies import EWCPlugin
def data(y): return make_avalanche_dataset(torch.utils.data.TensorDataset(torch.randn(len(y), 8), y),
    data_attributes=[DataAttribute(y.tolist(), "targets"), TaskLabels([0] * len(y))])
benchmark = with_task_labels(with_classes_timeline(benchmark_from_datasets(
    train=[data(torch.arange(20) % 2) for _ in range(2)])))
model, ewc = SimpleMLP(num_classes=2, input_size=8), EWCPlugin(ewc_lambda=10)
strategy = Naive(model=model, optimizer=torch.optim.Adam(model.parameters()), criterion=torch.nn.CrossEntropyLoss(),
    train_mb_size=5, plugins=[ewc])
for experience in benchmark.train_stream: strategy.train(experience)
print("importance", sum(f.sum() for f in ewc.importances.values()).item() > 0)
assert not [m for m in sys.modules if m.split(".")[0] in ("benchmarks", "reports")], "the plugin works alone"
"""


def test_the_plugin_in_a_plain_avalanche_script():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "importance True" in done.stdout
