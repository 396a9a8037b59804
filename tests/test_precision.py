"""Training in bfloat16: what is rounded and what is not, and that a record says so."""

import pytest
import torch
from avalanche.models import SimpleMLP
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn, optim

from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.training.precision import train_in_bfloat16
from tests.test_ewc import stream


class Seen(SupervisedPlugin):
    """What the network answered, and what it would answer in either precision."""

    def __init__(self):
        super().__init__()
        self.training, self.evaluation = [], []

    def after_forward(self, strategy, **kwargs):
        self.training.append((strategy.mb_output, *both(strategy)))

    def after_eval_forward(self, strategy, **kwargs):
        self.evaluation.append((strategy.mb_output, *both(strategy)))


def both(strategy):
    with torch.no_grad():
        exact = strategy.model(strategy.mb_x)
        with torch.autocast("cpu", torch.bfloat16):
            return exact, strategy.model(strategy.mb_x).float()


def test_training_is_rounded_and_evaluation_is_not():
    torch.manual_seed(0)
    seen, model = Seen(), SimpleMLP(num_classes=4, input_size=6, hidden_size=20, drop_rate=0)
    experiences = stream([[0, 1], [2, 3]])
    strategy = Naive(
        model=model,
        optimizer=optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        plugins=[seen],
    )
    train_in_bfloat16(strategy)
    for experience in experiences:
        strategy.train(experience)
        strategy.eval([experience])
    assert seen.training
    assert seen.evaluation
    for output, exact, rounded in seen.training:
        assert output.dtype == torch.float32, "the loss is"
        assert torch.equal(output, rounded)
        assert not torch.equal(output, exact)
    for output, exact, _ in seen.evaluation:
        assert torch.equal(output, exact)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(("name", "strategy"), [("class", "replay"), ("task", "replay"), ("task", "ewc")])
def test_a_run_learns_as_well_and_its_record_says_how(tmp_path, name, strategy):
    """With a head a task, too: what is replayed has others than what is new."""
    records = []
    for settings in ({}, {"training.precision": "bf16"}):
        (run,) = plan(f"split-digits/{name}", [strategy], [0], settings | {"training.epochs": 3})
        records.append(execute(run, tmp_path, "cpu", "disabled", lambda epochs: None))
    plain, rounded = records
    assert rounded.complete, rounded.reason
    assert rounded.hyperparameters["training"]["precision"] == "bf16"
    assert "precision" not in plain.hyperparameters["training"], "as records have it that were made before"
    assert rounded.accuracy_matrix != plain.accuracy_matrix
    assert abs(rounded.acc - plain.acc) < 0.1


def test_a_gan_is_not_trained_so(tmp_path):
    (run,) = plan("generate-digits", ["gan-finetune"], [0], {"training.precision": "bf16"})
    record = execute(run, tmp_path, "cpu", "disabled", lambda epochs: None)
    assert record.reason == "generate-digits: training.precision is for what classifies; GANs need float32"
