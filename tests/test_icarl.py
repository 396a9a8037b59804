"""iCaRL against the algorithms of its paper."""

import copy

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark, split_online_stream
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.models import IncrementalClassifier, SimpleMLP, as_multitask
from avalanche.training import JointTraining
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from engrams.benchmarks.data.loading import TensorClassificationDataset
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.training.learn import learn as learn_run
from engrams.strategies.baselines import ReplayPlugin
from engrams.strategies.icarl import NOT_MET, ICaRLPlugin, herded
from engrams.strategies.kept import Unkept
from tests.test_ewc import labelled, learn, mlp, quiet, stream
from tests.test_kept import same

MEMORY = 12


def samples(dataset):
    return torch.stack([x for x, *_ in dataset])


def rows(x):
    return {tuple(row.flatten().tolist()) for row in x}


def growing():
    model = mlp()
    model.classifier = IncrementalClassifier(5, 2)
    return model


def kept(plugin):
    return {label: samples(exemplars.samples) for label, exemplars in plugin._exemplars.items()}


@pytest.mark.parametrize("model", [lambda: mlp(classes=6), growing])
def test_the_class_of_the_nearest_mean_of_exemplars_is_answered(model):
    experiences, plugin, answers = stream([[4, 1], [0, 5]]), ICaRLPlugin(MEMORY), Answers()
    torch.manual_seed(0)
    strategy = learn(model(), experiences, plugin, answers)
    buffer = kept(plugin)
    assert {label: len(x) for label, x in buffer.items()} == dict.fromkeys([1, 4, 0, 5], MEMORY // 4)
    for experience in experiences:
        for label in experience.classes_in_this_experience:
            own = [x for x, y, *_ in experience.dataset if int(y) == label]
            assert rows(buffer[label]) <= rows(own), "of its own class"
    strategy.model.eval()

    def direction(x):
        return functional.normalize(strategy.model.features(x))

    means = torch.stack([functional.normalize(direction(x).mean(dim=0), dim=0) for x in buffer.values()])
    x = samples(experiences[0].dataset)
    expected = torch.tensor(list(buffer))[(direction(x)[:, None] - means).norm(dim=2).argmin(dim=1)]
    strategy.eval(experiences[0])
    assert answers.outputs.argmax(dim=1).tolist() == expected.tolist()
    assert len(expected.unique()) > 1
    assert (answers.outputs[:, [2, 3]] == NOT_MET).all(), "two classes that were not met"


class Answers(SupervisedPlugin):
    """Keeps the outputs of evaluation."""

    outputs = torch.empty(0)

    def after_eval_forward(self, strategy, **kwargs):
        self.outputs = torch.cat([self.outputs, strategy.mb_output])


def test_the_loss_compares_every_output_met_with_its_target():
    plugin = ICaRLPlugin(MEMORY)
    torch.manual_seed(0)
    strategy = learn(mlp(classes=6), stream([[4, 1], [0, 5]]), plugin)
    old = plugin._old
    assert not old.training
    assert all(torch.equal(p, q) for p, q in zip(old.parameters(), strategy.model.parameters(), strict=True))
    plugin._classes = [3]  # a third experience
    x, y = torch.randn(7, 6), torch.tensor([3, 3, 4, 0, 3, 1, 5])
    outputs = torch.randn(7, 6, requires_grad=True)
    loss = plugin.loss(outputs, y, old(x))
    total, gradient = 0.0, torch.zeros(7, 6)
    for n in range(7):
        for label in (4, 1, 0, 5, 3):  # and not 2, which has not come
            q = old(x[n : n + 1])[0, label].sigmoid() if label != 3 else float(y[n] == 3)
            p = outputs[n, label].sigmoid()
            total = total - (q * p.log() + (1 - q) * (1 - p).log()) / 35
            gradient[n, label] = (p - q) / 35
    torch.testing.assert_close(loss, total)
    loss.backward()
    torch.testing.assert_close(outputs.grad, gradient)


class Loss(SupervisedPlugin):
    """The loss of every step, and what iCaRL's is; the experience, and the classes in the minibatch."""

    def __init__(self, plugin):
        super().__init__()
        self.plugin, self.found, self.seen = plugin, [], []

    def before_backward(self, strategy, **kwargs):
        self.found.append((strategy.loss.item(), self.plugin.loss(*outputs_of(strategy, self.plugin)).item()))
        self.seen.append((strategy.experience.current_experience, {int(y) for y in strategy.mb_y}))


def outputs_of(strategy, plugin):
    return strategy.mb_output, strategy.mb_y, None if plugin._old is None else plugin._old(strategy.mb_x)


def test_the_loss_is_iCaRLs_and_exemplars_are_learned_with_every_experience():
    plugin = ICaRLPlugin(MEMORY)
    loss = Loss(plugin)
    learn(mlp(classes=6), stream([[4, 1], [0, 5]]), plugin, loss)
    for found, expected in loss.found:
        assert found == pytest.approx(expected, abs=1e-6)
    met = [set().union(*(labels for when, labels in loss.seen if when == t)) for t in (0, 1)]
    assert met == [{1, 4}, {0, 1, 4, 5}]
    steps = [sum(when == t for when, _ in loss.seen) for t in (0, 1)]
    assert steps == [2 * 40 // 10, 2 * -(-(40 + MEMORY) // 10)], "each once in an epoch"


@pytest.mark.parametrize("count", [1, 7, 30, 99])
def test_herding_takes_what_brings_the_mean_nearest(count):
    torch.manual_seed(3)
    features = functional.normalize(torch.randn(30, 4).double())
    features[5] = 0  # of a network whose units are all off
    mean, chosen = features.mean(dim=0), []
    for k in range(1, min(count, 30) + 1):
        left = [n for n in range(30) if n not in chosen]
        distances = [(mean - features[[*chosen, n]].sum(dim=0) / k).norm().item() for n in left]
        chosen.append(left[min(range(len(left)), key=distances.__getitem__)])
    assert herded(features, count) == chosen


def test_the_first_exemplars_stay():
    first, second = stream([[0, 1], [2, 3]])
    plugin = ICaRLPlugin(MEMORY)
    strategy = learn(mlp(classes=4), [first], plugin)
    before = kept(plugin)
    strategy.train(second)
    for label in (0, 1):
        assert len(before[label]) == MEMORY // 2
        assert torch.equal(kept(plugin)[label], before[label][: MEMORY // 4])


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_mean_may_be_of_mirror_images_too(mirrored):
    images = TensorClassificationDataset.from_tensors(torch.randn(40, 1, 2, 3), torch.arange(40) % 2, 0)
    plugin = ICaRLPlugin(MEMORY, mirrored_means=mirrored)
    model = SimpleMLP(num_classes=2, input_size=6, hidden_size=9, hidden_layers=1, drop_rate=0)
    learn(model, labelled(benchmark_from_datasets(train=[images])).train_stream, plugin)
    for label, x in kept(plugin).items():
        views = [x, x[..., [2, 1, 0]]] if mirrored else [x]
        features = functional.normalize(model.features(torch.cat(views).flatten(1))).mean(dim=0)
        torch.testing.assert_close(plugin._means[label], functional.normalize(features, dim=0))


def test_the_pieces_of_an_experience_are_one():
    experiences = stream([[0, 1], [2, 3]])
    whole, pieces = ICaRLPlugin(MEMORY), ICaRLPlugin(MEMORY)
    torch.manual_seed(0)
    strategy = learn(mlp(classes=4), experiences[:1], whole)
    torch.manual_seed(0)
    model = mlp(classes=4)
    online = split_online_stream(experiences, 8, shuffle=False, access_task_boundaries=True)
    learn(model, list(online)[:5], pieces)
    assert {label: len(x) for label, x in kept(pieces).items()} == {0: MEMORY // 2, 1: MEMORY // 2}
    assert not torch.equal(model.features[0].weight, strategy.model.features[0].weight)
    all_pieces = ICaRLPlugin(MEMORY)
    learn(mlp(classes=4), list(online), all_pieces)
    assert kept(all_pieces).keys() == {0, 1, 2, 3}


def test_one_plugin_begins_afresh_with_another_strategy():
    plugin = ICaRLPlugin(MEMORY)
    learn(mlp(), stream([[0, 1]]), plugin)
    with pytest.warns(UserWarning, match="was used with another strategy and another model: it starts afresh"):
        learn(mlp(), stream([[0, 1]]), plugin)
    assert plugin._exemplars.keys() == {0, 1}


class Scaled(SupervisedTemplate):
    """Normalises in its own forward pass."""

    def forward(self):
        return self.model((self.mb_x - 3) * 5)


class ScaledMLP(SimpleMLP):
    def forward(self, x):
        return super().forward((x - 3) * 5)


def test_it_asks_the_network_through_the_strategys_own_forward():
    """The same normalisation in the strategy and in the network has the same exemplars, means and answers."""
    found = []
    for template, network in ((Scaled, SimpleMLP), (SupervisedTemplate, ScaledMLP)):
        torch.manual_seed(1)
        plugin, answers = ICaRLPlugin(MEMORY, mirrored_means=True), Answers()
        model = network(num_classes=4, input_size=6, hidden_size=5, hidden_layers=1, drop_rate=0)
        strategy = learn(model, stream([[0, 1], [2, 3]]), plugin, answers, template=template)
        strategy.eval(stream([[0, 1]]))
        found.append((plugin._means, answers.outputs, list(strategy.model.state_dict().values())))
    for one, other in zip(tree_leaves(found[0]), tree_leaves(found[1]), strict=True):
        torch.testing.assert_close(one, other)


class Keeping(SimpleMLP):
    """Keeps its features, which carry gradients."""

    def forward(self, x):
        self.kept = self.features(x)
        return self.classifier(self.kept)


def test_a_network_that_keeps_its_activations_can_be_copied():
    plugin = ICaRLPlugin(MEMORY)
    learn(Keeping(num_classes=4, input_size=6, hidden_size=5), stream([[0, 1], [2, 3]]), plugin)
    assert kept(plugin).keys() == {0, 1, 2, 3}


def test_small_labels_are_labels():
    plugin = ICaRLPlugin(MEMORY)
    outputs, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    plugin._classes = [0, 1]
    assert torch.equal(plugin.loss(outputs, y.to(torch.uint8)), plugin.loss(outputs, y))


class FewShot(SupervisedTemplate):
    """Trains on the first 9 samples of an experience."""

    def train_dataset_adaptation(self, **kwargs):
        self.adapted_dataset = self.experience.dataset.subset(range(9))


@pytest.mark.parametrize("make", [lambda: ICaRLPlugin(8), lambda: ReplayPlugin(8)])
def test_only_samples_that_were_trained_on_are_kept(make):
    plugin, experiences = make(), stream([[0, 1], [2, 3]])
    learn(mlp(classes=4), experiences, plugin, template=FewShot)
    trained = torch.cat([torch.stack([experience.dataset[n][0] for n in range(9)]) for experience in experiences])
    if isinstance(plugin, ICaRLPlugin):
        found = torch.cat(list(kept(plugin).values()))
        with pytest.raises(Unkept):
            plugin.state_dict()
    else:
        found = plugin._buffer[0]
    assert len(found) == 8
    assert all((x == trained).all(dim=1).any() for x in found)


def test_experiences_learned_together_are_refused():
    strategy = JointTraining(
        model=mlp(classes=4),
        optimizer=torch.optim.SGD(mlp().parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        plugins=[ICaRLPlugin(MEMORY)],
        evaluator=quiet(),
    )
    with pytest.raises(ValueError, match=r"one experience after another; here are samples of class [02], which the"):
        strategy.train(stream([[0, 1], [2, 3]]))


def test_what_it_cannot_learn_is_refused():
    with pytest.raises(ValueError, match="class 1 comes back"):
        learn(mlp(classes=3), stream([[0, 1], [2, 1]]), ICaRLPlugin(MEMORY))
    with pytest.raises(ValueError, match=r"this network has one a task; .*network\.all_classes"):
        learn(as_multitask(mlp(), "classifier"), stream([[0, 1]]), ICaRLPlugin(MEMORY))
    with pytest.raises(ValueError, match="a buffer of 1 cannot hold an exemplar of each of 2 classes"):
        learn(mlp(), stream([[0, 1]]), ICaRLPlugin(1))
    with pytest.raises(ValueError, match="no layer 'head'; name its classifier"):
        learn(mlp(), stream([[0, 1]]), ICaRLPlugin(MEMORY, classifier="head"))
    with pytest.raises(ValueError, match="mem_size must be at least 1; got 0"):
        ICaRLPlugin(0)


class Fixed(SupervisedTemplate):
    """Has a loss of its own, which is not its criterion's."""

    def criterion(self):
        return functional.cross_entropy(self.mb_output, self.mb_y)


class Regularised(SupervisedTemplate):
    """Adds something to its criterion's loss."""

    def criterion(self):
        return super().criterion() + self.mb_output.square().mean()


class OneHot(SupervisedTemplate):
    def _unpack_minibatch(self):
        super()._unpack_minibatch()
        self.mbatch[1] = functional.one_hot(self.mb_y, 4).float()


class Mapped(SupervisedTemplate):
    def _unpack_minibatch(self):
        super()._unpack_minibatch()
        self.mbatch[1] = 3 - self.mbatch[1]


class WithFeatures(SimpleMLP):
    def forward(self, x):
        return super().forward(x), x


class ByFunction(SimpleMLP):
    def forward(self, x):
        return functional.linear(self.features(x), self.classifier.weight, self.classifier.bias)


@pytest.mark.parametrize(
    ("network", "template", "message"),
    [
        (SimpleMLP, Fixed, r"in place of the strategy's _criterion, which Fixed\.criterion\(\) does not ask: let it"),
        (SimpleMLP, Mapped, "by the labels of the data set, and Mapped changes these in a minibatch: let the data set"),
        (SimpleMLP, OneHot, "by the labels of the data set, and OneHot changes these in a minibatch: let the data set"),
        (WithFeatures, SupervisedTemplate, r"ICaRLPlugin cannot work here: the network gives a tuple where outputs of"),
        (ByFunction, SupervisedTemplate, r"does not call that layer: call it by itself, self\.classifier\(features\)"),
    ],
)
def test_a_script_in_which_it_cannot_work_is_refused_before_anything_is_learned(network, template, message):
    model = network(num_classes=4, input_size=6, hidden_size=5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        learn(model, stream([[0, 1], [2, 3]]), ICaRLPlugin(MEMORY), template=template)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_strategy_may_add_to_its_loss():
    plugin = ICaRLPlugin(MEMORY)
    learn(mlp(classes=4), stream([[0, 1], [2, 3]]), plugin, template=Regularised)
    assert kept(plugin).keys() == {0, 1, 2, 3}


def test_a_compiled_network_that_was_evaluated_before_answers_by_means():
    """What was compiled without hooks goes on without them."""
    experiences, found = stream([[0, 1], [2, 3]]), []
    for compiled in (False, True):
        torch.manual_seed(0)
        model, plugin, answers = mlp(classes=4), ICaRLPlugin(MEMORY), Answers()
        strategy = learn(torch.compile(model, backend="eager") if compiled else model, [], plugin)
        strategy.eval(experiences)
        for experience in experiences:
            strategy.train(experience)
        strategy.plugins.append(answers)
        strategy.eval(experiences)
        found.append(answers.outputs)
    assert (found[0] < 0).all(), "distances"
    torch.testing.assert_close(*found)


def test_a_run_of_it_is_the_same_from_disk_and_from_memory():
    run = plan("split-digits/class", ["icarl"], [0], {"mem_size": 40, "training.epochs": 2})[0]
    memory, disk = (learn_run(run, "cpu", [], lambda epochs: None, stream_from_disk=place) for place in (False, True))
    assert memory.accuracy_matrix == disk.accuracy_matrix
    assert min(memory.accuracy_matrix[-1]) > 0.5
    assert all(accuracy == 0 for row in (memory.accuracy_matrix[0],) for accuracy in row[1:]), "of classes not met"


def test_read_off_one_head_a_task_that_has_not_come_is_guessed():
    settings = {"mem_size": 40, "training.epochs": 1, "network.all_classes": True}
    run = plan("split-digits/task", ["icarl"], [0], settings)[0]
    matrix = learn_run(run, "cpu", [], lambda epochs: None).accuracy_matrix
    assert all(0.3 < accuracy < 0.7 for accuracy in matrix[0][1:])


def test_it_joins_with_a_penalty():
    settings = {"icarl.mem_size": 40, "l2.l2_lambda": 0.1, "training.epochs": 1}
    run = plan("split-digits/class", ["icarl+l2"], [0], settings)[0]
    assert learn_run(run, "cpu", [], lambda epochs: None).accuracy_matrix


def test_its_network_may_be_any_with_a_classifier():
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2))
    model.classifier = nn.Linear(5, 4)
    strategy = learn(model, stream([[0, 1], [2, 3]]), ICaRLPlugin(MEMORY))
    assert not strategy.model.classifier._forward_pre_hooks
    strategy.eval(stream([[0, 1]]))
    assert not strategy.model.classifier._forward_pre_hooks


def test_within_an_experience_the_trained_outputs_are_judged():
    experiences, answers = stream([[0, 1], [2, 3]]), Answers()
    strategy = learn(mlp(classes=4), experiences[:1], ICaRLPlugin(MEMORY), answers)

    class Look(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            strategy.eval(experiences[1])
            strategy.experience = experiences[1]

    strategy.plugins.append(Look())
    strategy.train(experiences[1])
    assert len(answers.outputs) == 2 * 40
    assert (answers.outputs != NOT_MET).all()
    strategy.eval(experiences[1])
    assert (answers.outputs[80:] <= 0).all(), "distances, from now on"


def test_the_strategys_own_criterion_has_no_part_in_training():
    def learned(criterion, plugin):
        torch.manual_seed(0)
        model = mlp(classes=4)
        strategy = learn(model, [], plugin)
        strategy._criterion = criterion
        for experience in stream([[0, 1], [2, 3]]):
            strategy.train(experience)
        assert strategy._criterion is criterion, "it is put back"
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    weighted = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 0.0, 1.0, 1.0]))  # of some minibatches 0 / 0
    usual = learned(nn.CrossEntropyLoss(), ICaRLPlugin(MEMORY))
    assert usual.isfinite().all()
    assert torch.equal(learned(weighted, ICaRLPlugin(MEMORY)), usual)


def test_a_class_that_an_experience_only_names_is_left_out():
    experiences = stream([[0, 1]])
    experiences[0].classes_in_this_experience = [0, 1, 3]
    plugin = ICaRLPlugin(MEMORY)
    learn(mlp(classes=4), experiences, plugin)
    assert kept(plugin).keys() == {0, 1}


def test_another_plugin_goes_on_from_a_state_to_the_bit():
    ends = []
    for exchanged in (False, True):
        torch.manual_seed(0)
        plugin, experiences = ICaRLPlugin(MEMORY), stream([[4, 1], [0, 5], [2, 3]])
        strategy = learn(growing(), experiences[:1], plugin)
        state = plugin.state_dict()
        if exchanged:
            fresh = ICaRLPlugin(MEMORY)
            fresh.load_state_dict(state)
            assert same(fresh.state_dict(), state)
            strategy.plugins[strategy.plugins.index(plugin)] = plugin = fresh
            strategy.clock.train_exp_counter = 0  # as in a script of its own
        torch.manual_seed(1)
        for experience in experiences[1:]:
            strategy.train(experience)
        ends.append((kept(plugin), strategy.model.state_dict()))
    (buffer, model), (again, model_again) = ends
    assert buffer.keys() == again.keys() == {0, 1, 2, 3, 4, 5}
    assert all(torch.equal(buffer[label], again[label]) for label in buffer)
    assert all(torch.equal(p, model_again[name]) for name, p in model.items())


def test_exemplars_of_an_experience_in_pieces_cannot_be_kept():
    parts = list(split_online_stream(stream([[0, 1]]), experience_size=15, access_task_boundaries=True))
    for part in parts:
        part.classes_in_this_experience = part.origin_experience.classes_in_this_experience
    plugin = ICaRLPlugin(MEMORY)
    learn(mlp(), parts, plugin)
    assert kept(plugin).keys() == {0, 1}
    with pytest.raises(Unkept, match="of experiences that cannot be found again"):
        plugin.state_dict()


def test_exemplars_are_looked_for_by_the_number_of_their_experience():
    """A part of a stream has other places; and what is found has to be of the class."""
    data = concat_datasets([experience.dataset for experience in stream([[4, 1], [0, 5], [2, 3]])])
    order = [4, 1, 0, 5, 2, 3]
    whole = nc_benchmark(data, data, n_experiences=3, task_labels=False, fixed_class_order=order).train_stream
    first, second = whole[1:]  # their stream has two experiences
    plugin, model = ICaRLPlugin(MEMORY), growing()
    learn(model, [first], plugin)
    before = kept(plugin)

    def goes_on(experience):
        loaded = ICaRLPlugin(MEMORY)
        loaded.load_state_dict(plugin.state_dict())
        learn(copy.deepcopy(model), [experience], loaded)
        return loaded

    loaded = goes_on(second)
    assert loaded._exemplars.keys() == {0, 5, 2, 3}
    assert all(rows(x) <= rows(before[label]) for label, x in kept(loaded).items() if label in before)
    for other in (stream([[4, 1], [2, 3], [0, 5]])[1], stream([[2, 3]])[0]):
        with pytest.raises(ValueError, match=r"iCaRL's exemplars of class \d are not where they were in the stream"):
            goes_on(other)


def test_a_state_that_was_loaded_answers_at_once():
    """Also with a network that has got more units meanwhile."""
    experiences, answers = stream([[0, 1], [2, 3]]), [Answers(), Answers()]
    plugin, model = ICaRLPlugin(MEMORY), growing()
    strategy = learn(model, experiences[:1], plugin, answers[0])
    loaded = ICaRLPlugin(MEMORY)
    loaded.load_state_dict(plugin.state_dict())
    strategy.eval(experiences[1])
    other = learn(model, [], loaded, answers[1])
    other.eval(experiences[1])
    assert torch.equal(answers[0].outputs, answers[1].outputs)
    assert answers[0].outputs.shape[1] == 4
    other.train(experiences[1])
    assert loaded._exemplars.keys() == {0, 1, 2, 3}
