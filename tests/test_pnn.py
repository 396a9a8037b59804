"""Progressive networks: equation 1 column by column, and old columns that nothing moves."""

import copy

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream
from avalanche.models import SimpleMLP, as_multitask
from avalanche.training import JointTraining
from torch import nn
from torch.nn import functional as F

from engrams.benchmarks.data.streams import labelled
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.protocols.schema import CNN
from engrams.benchmarks.training.build import benchmark_of, make_strategy
from engrams.benchmarks.training.networks import ConvolutionalNetwork, ReducedResNet
from engrams.strategies.heads import MASKED
from engrams.strategies.pnn import ProgressiveNetwork
from tests.test_ewc import learn, mlp, quiet, stream

TASKS = [[0, 1]] * 3


def two_layers():
    return SimpleMLP(num_classes=2, input_size=6, hidden_size=5, hidden_layers=2, drop_rate=0)


def learned(network=mlp, experiences=None, **options):
    torch.manual_seed(1)
    model = ProgressiveNetwork(network)
    learn(model, experiences or stream(TASKS, task_incremental=True), **options)
    return model.eval()


def test_a_column_is_equation_1():
    """Every U_i^(k:j) by itself, a sum over j; the first layer has none."""
    model = learned(two_layers)
    x = torch.randn(7, 6)
    h = []
    for k, column in enumerate(model.columns):
        weights = [layer.before_activation[-1] for layer in column.layers]
        h.append([x])
        for i, weight in enumerate(weights):
            total = h[k][i] @ weight.weight.T + weight.bias
            for j in range(k if i else 0):
                width = h[j][i].shape[1]
                lateral = column.laterals[i - 1].connection.weight[:, j * width : (j + 1) * width]
                assert lateral.abs().sum() > 0
                total = total + h[j][i] @ lateral.T
            h[k].append(total if i == len(weights) - 1 else total.relu())
        assert torch.allclose(model(x, k), h[k][-1], atol=1e-6)
        assert len(column.laterals) == (2 if k else 0)


def resnet():
    return ReducedResNet(channels=3, width=4, classes=2)


@pytest.mark.parametrize("side", [32, 28])  # 28, 14, 7, 4
def test_a_residual_network_has_a_connection_into_every_size(side):
    """As Chaudhry et al. 2019 have it: a convolution 1x1, before the last ReLU of a stage; a matrix at the end."""
    torch.manual_seed(0)
    model = ProgressiveNetwork(resnet)
    x = torch.randn(4, 3, side, side)
    for task in range(2):
        model.train()
        model._add_column(task, x[0])
    model.eval()
    old, new = model.columns
    with torch.no_grad():
        h, before = x, x
        for place in range(5):
            weighted, lateral = new.layers[place].before_activation(h), 0
            if place:
                kernel = new.laterals[place - 1].connection.weight
                lateral = F.conv2d(before, kernel, stride=1 if place == 1 else 2)
                assert lateral.shape == weighted.shape
            h, before = F.relu(weighted + lateral), old.layers[place](before, None)
        classifier = new.layers[5].before_activation[-1]
        matrix = new.laterals[4].connection.weight
        expected = classifier(h.mean(dim=(2, 3))) + before.mean(dim=(2, 3)) @ matrix.T
        new.active[:] = True
        assert torch.allclose(model(x, 1), expected, atol=1e-5)
    assert [len(column.laterals) for column in model.columns] == [0, 5]


def test_without_connections_a_column_is_its_network():
    network = resnet()
    model = ProgressiveNetwork(lambda: network)
    x = torch.randn(4, 3, 32, 32)
    model._add_column(0, x[0])
    model.columns[0].active[:] = True
    model.eval()
    assert torch.allclose(model(x, 0), network.eval()(x), atol=1e-5)


class GradientsStay(torch.optim.SGD):
    """They are set to 0 instead of None."""

    def zero_grad(self, set_to_none=False):
        super().zero_grad(set_to_none=False)


@pytest.mark.parametrize("kind", [torch.optim.SGD, GradientsStay, torch.optim.AdamW])
def test_nothing_of_an_old_column_ever_changes(kind):
    """Neither parameters nor batch norm's statistics, nor a single answer; with momentum and weight decay."""

    def network():
        model = two_layers()
        model.features.insert(1, nn.BatchNorm1d(5))
        return model

    torch.manual_seed(1)
    model = ProgressiveNetwork(network)
    experiences = stream(TASKS, task_incremental=True)
    x = torch.randn(9, 6)
    momentum = {} if kind is torch.optim.AdamW else {"momentum": 0.9}
    strategy = learn(model, [])
    strategy.optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.1, **momentum)
    strategy.train(experiences[0])
    states, answers = [], []
    for task, experience in enumerate(experiences):
        if task:
            strategy.train(experience)
        model.eval()
        for old, (state, answer) in enumerate(zip(states, answers, strict=True)):
            assert all(torch.equal(value, state[name]) for name, value in model.columns[old].state_dict().items())
            assert torch.equal(model(x, old), answer)
        states.append(copy.deepcopy(model.columns[task].state_dict()))
        answers.append(model(x, task).detach())
    assert len(model.columns) == 3
    assert not torch.equal(answers[0], answers[1])
    assert not any(p.requires_grad for column in model.columns[:-1] for p in column.parameters())


def test_a_new_column_and_its_connections_learn():
    class Seen(ProgressiveNetwork):
        begun = None

        def adaptation(self, experience):
            super().adaptation(experience)
            if self.training:
                self.begun = copy.deepcopy(self.columns[-1].state_dict())

    torch.manual_seed(1)
    model = Seen(two_layers)
    learn(model, stream(TASKS, task_incremental=True))
    ended = model.columns[-1].state_dict()
    parameters = dict(model.columns[-1].named_parameters())
    assert {"laterals.0.connection.weight", "layers.0.before_activation.1.weight"} <= parameters.keys()
    for name in parameters:
        assert not torch.equal(ended[name], model.begun[name]), name


def test_columns_begin_with_values_of_their_own():
    """And a connection as if it were alone: with many columns before it, it is no smaller."""
    torch.manual_seed(0)
    model = ProgressiveNetwork(lambda: SimpleMLP(num_classes=2, input_size=6, hidden_size=100, hidden_layers=1))
    for task in range(5):
        model.train()
        model._add_column(task, torch.randn(6))
    first = [column.layers[0].before_activation[-1].weight for column in model.columns]
    assert not any(torch.equal(first[0], other) for other in first[1:])
    for column in model.columns[1:]:
        weight = column.laterals[0].connection.weight
        assert weight.detach().abs().max() == pytest.approx(100**-0.5, rel=0.05)


def test_a_task_that_has_not_come_is_answered_with_zeros():
    model = learned(experiences=stream(TASKS[:2], task_incremental=True))
    x = torch.randn(4, 6)
    assert torch.equal(model(x, 7), torch.zeros(4, 2))
    answers = model(x, torch.tensor([0, 1, 0, 7]))
    assert torch.allclose(answers[1], model(x[1:2], 1)[0])
    assert not answers[3].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    torch.manual_seed(1)
    model = ProgressiveNetwork(lambda: mlp().to(dtype))
    for task in range(2):
        model.train()
        model._add_column(task, torch.randn(6))
        model.columns[task].active[:] = True
    x = torch.randn(4, 6, dtype=dtype)
    answers = model.eval()(x, torch.tensor([0, 1, 0, 7]))
    assert answers.dtype == dtype
    torch.testing.assert_close(answers[:2], torch.stack([model(x, 0)[0], model(x, 1)[1]]))


def test_classes_of_other_tasks_are_no_answers():
    model = learned(lambda: mlp(4), stream([[0, 1], [2, 3]], task_incremental=True))
    x = torch.randn(3, 6)
    assert (model(x, 0)[:, 2:] == MASKED).all()
    assert (model(x, 1)[:, :2] == MASKED).all()
    assert (model(x, 1)[:, 2:] > MASKED).all()


def test_pieces_of_an_experience_share_a_column():
    experiences = stream(TASKS, task_incremental=True, samples=30)
    pieces = list(split_online_stream(experiences, experience_size=10, access_task_boundaries=True))
    for piece in pieces:  # else Avalanche does not tell a model the task
        piece.task_labels = piece.origin_experience.task_labels
    model = learned(experiences=pieces)
    assert len(model.columns) == 3


class Squared(SimpleMLP):
    """Does something between its features and its classifier."""

    def forward(self, x):
        return self.classifier(self.features(x.flatten(1)) ** 2)


class Dropped(SimpleMLP):
    """Does so in training alone."""

    def forward(self, x):
        return self.classifier(F.dropout(self.features(x.flatten(1)), training=self.training))


class Hidden(nn.Module):
    def forward(self, x):
        return x.relu()


class OfLayers(nn.Module):
    def __init__(self, *features):
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = nn.Linear(5, 2)

    def forward(self, x):
        return self.classifier(self.features(x))


@pytest.mark.parametrize(
    ("network", "experiences", "said"),
    [
        (lambda: nn.Linear(6, 2), TASKS, "nn.Sequential called features and an nn.Linear called classifier; Linear"),
        (lambda: as_multitask(mlp(), "classifier"), TASKS, "features and an nn.Linear called classifier; "),
        (lambda: Squared(num_classes=2, input_size=6, hidden_size=5), TASKS, "that of Squared is another"),
        (lambda: Dropped(num_classes=2, input_size=6, hidden_size=50), TASKS, "that of Dropped is another"),
        (lambda: OfLayers(nn.Linear(6, 5), Hidden()), TASKS, "a Hidden in its features may hide some"),
        (lambda: OfLayers(), TASKS, "cannot run OfLayers: .*mat1 and mat2"),
    ],
)
def test_a_network_that_cannot_be_cut_is_refused(network, experiences, said):
    with pytest.raises(ValueError, match=said):
        learned(network, stream(experiences, task_incremental=True))


def test_what_does_not_fit_the_columns_is_refused():
    with pytest.raises(ValueError, match="an experience has class 3; a column has 2 outputs"):
        learned(mlp, stream([[0, 1], [2, 3]], task_incremental=True))
    several = stream(TASKS[:1])[0]
    several.task_labels = [0, 1]
    with pytest.raises(ValueError, match=r"has one column a task; an experience has tasks 0, \[1\]"):
        learned(mlp, [several])


@pytest.mark.parametrize("order", [[0, 1, 0], [0, 0]])
def test_a_task_that_comes_back_is_refused(order):
    """Also where all experiences have the same one, as most of Avalanche's benchmarks do unless asked."""
    experiences = stream(TASKS, task_incremental=True)
    again = benchmark_from_datasets(train=[experiences[task].dataset for task in order])
    with pytest.raises(ValueError, match=r"has learned task 0 in an earlier experience, .* return_task_id=True"):
        learn(ProgressiveNetwork(mlp), labelled(again).train_stream)


def test_an_experience_may_be_trained_twice():
    model, (experience, *_) = ProgressiveNetwork(mlp), stream(TASKS, task_incremental=True)
    learn(model, [experience, experience])
    assert len(model.columns) == 1


def test_experiences_learned_together_are_refused():
    """Their columns would be frozen before they have learned."""
    model = ProgressiveNetwork(mlp)
    strategy = JointTraining(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        evaluator=quiet(),
    )
    with pytest.raises(ValueError, match="learns one experience after another, not several at once"):
        strategy.train(stream(TASKS, task_incremental=True))


def test_one_network_for_all_columns_is_refused():
    network = mlp()
    with pytest.raises(ValueError, match="takes a function that makes a new network each time"):
        learned(lambda: network)


def test_activations_that_cannot_be_connected_are_refused():
    model = ProgressiveNetwork(lambda: OfLayers(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(15, 5)))
    with pytest.raises(ValueError, match=r"connects vectors .*; OfLayers has activations \[2, 3, 5\]"):
        model._add_column(0, torch.randn(2, 6))


def test_a_convolutional_network_has_maps_and_vectors_connected():
    """A convolution 1x1 between maps that a pooling has made smaller; from maps to a vector, their mean."""

    def network():
        return ConvolutionalNetwork(
            CNN(kind="cnn", convolutions=[3, "M", 4], hidden_sizes=[5]), torch.Size([1, 8, 8]), 2
        )

    torch.manual_seed(0)
    model = ProgressiveNetwork(network)
    x = torch.randn(6, 1, 8, 8)
    for task in range(3):
        model.train()
        model._add_column(task, x[0])
        model.columns[task].active[:] = True
        assert model(x, task).isfinite().all()
    shapes = [tuple(lateral.connection.weight.shape) for lateral in model.columns[2].laterals]
    assert shapes == [(4, 6, 1, 1), (5, 8), (2, 10)]


def test_a_state_has_the_tasks():
    model = learned()
    torch.manual_seed(2)
    other = ProgressiveNetwork(mlp)
    for task in (5, 6, 7):  # other columns, of the same shapes
        other._add_column(task, torch.randn(6))
    other.load_state_dict(model.state_dict())
    x = torch.randn(4, 6)
    for task in range(3):
        assert torch.equal(other.eval()(x, task), model(x, task))


@pytest.mark.parametrize(
    ("name", "settings", "without"),
    [
        ("split-digits/class", {}, ""),
        ("split-digits/task", {"network.all_classes": True}, " without network.all_classes"),
    ],
)
def test_a_protocol_without_task_labels_is_refused(name, settings, without):
    with pytest.raises(ProtocolError) as refused:
        plan(name, ["pnn"], [0], settings)
    assert str(refused.value) == (
        f"{name}: pnn must be told the task of every sample, which this protocol does not tell; it runs in the "
        f"scenario task{without}"
    )


def test_a_network_of_ones_own_that_cannot_be_cut_is_refused_before_a_run(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, shape, classes):\n"
        "        super().__init__()\n"
        "        self.classifier = nn.Linear(shape.__getitem__(0) * 64, classes)\n"
        "    def forward(self, x):\n"
        "        return self.classifier(x.flatten(1))\n"
    )
    run = plan("split-digits/task", ["pnn"], [0], {"network.kind": f"{tmp_path}/own.py:Net"})[0]
    with pytest.raises(ProtocolError, match=r"split-digits/task: pnn: a progressive network takes .*; Net has none"):
        make_strategy(run, benchmark_of(run), "cpu", [])
