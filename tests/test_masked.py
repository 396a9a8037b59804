"""Task-incremental accuracy read off one head, against the same network read class-incrementally."""

import numpy as np
import pytest
import torch

from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.judging.masked import only
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.training.learn import learn


def learned(scenario, strategy, settings=()):
    values = {"training.epochs": 2, "network.all_classes": True, "judging.every": 7, "judging.prequential": True}
    return learn(
        plan(f"split-digits/{scenario}", [strategy], [0], values | dict(settings))[0], "cpu", [], lambda epochs: None
    )


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        ("naive", ()),
        ("er", {"mem_size": 20}.items()),
        ("mas", {"mas_lambda": 1.0}.items()),
        ("avalanche-der", {"mem_size": 20, "batch_size_mem": 10, "alpha": 0.5}.items()),
    ],
)
def test_one_network_is_read_twice(strategy, settings):
    by_class, by_task = (learned(scenario, strategy, settings) for scenario in ("class", "task"))
    asked, free = by_task.predictions, by_class.predictions
    assert np.array_equal(asked.targets, free.targets)
    assert np.array_equal(asked.experience, free.experience)
    own = asked.experience * 2 == asked.answers - asked.answers % 2
    assert own.all(), "the answer is one of the task's two classes"
    told_apart_anyway = free.answers - free.answers % 2 == free.experience * 2
    assert np.array_equal(asked.answers[told_apart_anyway], free.answers[told_apart_anyway])
    assert not told_apart_anyway.all()
    # Chance is one in two, and not one in ten.
    assert np.mean(by_task.accuracy_at_initialisation) > 2 * np.mean(by_class.accuracy_at_initialisation)
    for row, answers in zip(by_task.accuracy_matrix, asked.answers, strict=True):
        right = answers == asked.targets
        assert row == pytest.approx([right[asked.experience == place].mean() for place in range(5)])


def test_what_is_measured_while_it_learns_is_masked_too():
    by_class, by_task = (learned(scenario, "naive") for scenario in ("class", "task"))
    for index in range(5):
        last = max(place for place, experience in enumerate(by_task.anytime.experience) if experience == index)
        assert by_task.anytime.accuracy[last] == pytest.approx(by_task.accuracy_matrix[index][: index + 1])
    assert by_task.prequential.accuracy > by_class.prequential.accuracy


def test_outputs_of_other_classes_are_minus_infinity():
    outputs = torch.arange(6.0).view(2, 3)
    inf = torch.inf
    assert torch.equal(only([2, 0], outputs), torch.tensor([[0, -inf, 2], [3, -inf, 5]]))
    assert only(None, outputs) is outputs


def test_tasks_must_have_classes_of_their_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        """title = "mine"
benchmark = "avalanche:RotatedMNIST"
[stream]
scenarios = ["task"]
validation_fraction = 0.1
[network]
hidden_size = 5
hidden_layers = 1
all_classes = true
[training]
optimizer = "sgd"
learning_rate = 0.1
batch_size = 10
epochs = 1
schedule = "constant"
reset_optimizer = false
"""
    )
    with pytest.raises(
        ProtocolError, match=r"network\.all_classes with the scenario task goes with stream\.kind = 'split'"
    ):
        registry.get(str(file))
