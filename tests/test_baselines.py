"""The baselines, and Avalanche's own strategies where they are mended."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, TransformGroups, as_classification_dataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.models import as_multitask
from avalanche.training.plugins import (
    MASPlugin,
    MIRPlugin,
    RWalkPlugin,
    SupervisedPlugin,
    SynapticIntelligencePlugin,
)
from torch import nn
from torch.utils.data import TensorDataset

from engrams.strategies.avalanche.faults import (
    WorkingMASPlugin,
    WorkingMIRPlugin,
    WorkingRWalkPlugin,
    WorkingSynapticIntelligencePlugin,
)
from engrams.strategies.baselines import FrozenBackbonePlugin, L2Plugin, ReplayPlugin
from tests.test_ewc import learn, mlp, stream


def test_frozen_needs_the_classifiers_name():
    plugin = FrozenBackbonePlugin("head")
    with pytest.raises(ValueError, match="no parameters in 'head'"):
        learn(mlp(), stream([[0, 1]] * 2), plugin)


def test_l2_has_importance_one_for_what_was_trained_and_stays_one():
    plugin = L2Plugin(0.5)
    model = as_multitask(mlp(), "classifier")
    learn(model, stream([[0, 1]] * 3, task_incremental=True), plugin)
    assert all((importance == 1).all() for importance in plugin.importances.values())
    expected = 0.0
    with torch.no_grad():
        for name, p in model.named_parameters():
            expected += 0.25 * 0.1**2 * p.numel() if name in plugin.importances else 0
            p.add_(0.1)
    assert plugin.penalty(model).item() == pytest.approx(expected, rel=1e-3)


class Layers(SupervisedPlugin):
    """Whether the layers are in training mode, at every step; and the features of the same inputs."""

    def __init__(self):
        super().__init__()
        self.modes = []

    def before_forward(self, strategy, **kwargs):
        self.modes.append({name: module.training for name, module in strategy.model.named_modules()})


def test_frozen_holds_the_running_statistics_of_batch_norm():
    """A fixed backbone gives fixed features, whatever keeps something besides parameters."""
    torch.manual_seed(0)
    model = mlp()
    model.features = nn.Sequential(
        model.features,
        nn.BatchNorm1d(5),
        nn.Sequential(nn.Dropout(0.1), nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))),
    )
    model.classifier = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 2))
    layers = Layers()
    strategy = learn(model, stream([[0, 1]])[:1], FrozenBackbonePlugin(), layers)
    x = torch.randn(50, 6)
    before, own = model.eval().features(x), model.classifier[0].running_mean.clone()
    for experience in stream([[0, 1]] * 2):
        strategy.train(experience, eval_streams=[[experience]])
        strategy.eval(experience)
    assert torch.equal(model.eval().features(x), before)
    assert not torch.equal(model.classifier[0].running_mean, own), "the classifier goes on learning"
    first, last = layers.modes[0], layers.modes[-1]
    assert all(first.values())
    assert not last["features.1"]
    assert last["features.2.0"]
    assert last["classifier.0"]
    assert last[""], "the model as a whole goes on training"
    assert last["features.2"], "what only holds such layers as well"


def test_one_frozen_plugin_begins_afresh_with_another_strategy():
    plugin = FrozenBackbonePlugin()
    learn(mlp(), stream([[0, 1]] * 2), plugin)
    model = mlp()
    before = model.features[0].weight.detach().clone()
    learn(model, stream([[0, 1]])[:1], plugin)
    assert not torch.equal(model.features[0].weight, before)


def test_the_first_experience_that_a_frozen_plugin_meets_is_learned_whole():
    first, second, third = stream([[0, 1]] * 3)
    strategy = learn(mlp(), [first])
    strategy.plugins.append(FrozenBackbonePlugin())
    moved = []
    for experience in (second, third):
        before = strategy.model.features[0].weight.detach().clone()
        strategy.train(experience)
        moved.append(not torch.equal(strategy.model.features[0].weight, before))
    assert moved == [True, False]


def test_frozen_learns_only_the_classifier_after_the_first_experience():
    model = mlp()
    strategy = learn(model, stream([[0, 1]])[:1], FrozenBackbonePlugin())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for experience in stream([[0, 1]] * 2):
        strategy.train(experience)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("features"), name


# --- replay -----------------------------------------------------------------------------------------------------------


class Watch(SupervisedPlugin):
    """Keeps every minibatch that is trained on, by experience."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_training_exp(self, strategy, **kwargs):
        self.seen.append([])

    def before_backward(self, strategy, **kwargs):
        self.seen[-1].append([column.clone() for column in strategy.mbatch])


def rows(x):
    return {tuple(row.tolist()) for row in x}


def test_replay_shows_as_many_old_samples_as_new_ones_and_keeps_to_its_size():
    replay, watch = ReplayPlugin(12), Watch()
    experiences = stream([[0, 1]] * 4)
    torch.manual_seed(1)
    learn(mlp(), experiences, replay, watch)
    data = [rows(torch.stack([x for x, *_ in e.dataset])) for e in experiences]
    assert all(len(x) == 10 for x, *_ in watch.seen[0]), "nothing to rehearse in the first experience"
    for t in (1, 2, 3):
        rehearsed = set()
        for x, y, _ in watch.seen[t]:
            assert len(x) == len(y) == 20
            assert rows(x[:10]) <= data[t]
            assert len(rows(x[10:])) == 10, "no sample twice in one step"
            rehearsed |= rows(x[10:])
        for past in range(t):
            assert len(rehearsed & data[past]) == 12 // t, "an equal share for every past experience"
        assert len(rehearsed) == 12 // t * t
    labels = {tuple(x.tolist()): int(y) for e in experiences for x, y, _ in e.dataset}
    for x, y, _ in (batch for batches in watch.seen for batch in batches):
        assert [labels[tuple(row.tolist())] for row in x] == y.tolist(), "each sample with its own label"


def test_what_replay_keeps_is_drawn_at_random():
    """Over many buffers every sample is kept as often as the others, whatever its place in the data."""
    (experience,) = stream([[0, 1]])
    place = {tuple(x.tolist()): n for n, (x, *_) in enumerate(experience.dataset)}
    kept = torch.zeros(len(place))
    for seed in range(60):
        torch.manual_seed(seed)
        replay = ReplayPlugin(10)
        learn(mlp(), [experience], replay)
        for x in replay._buffer[0]:
            kept[place[tuple(x.tolist())]] += 1
    expected = 60 * 10 / len(place)
    assert ((kept - expected) ** 2 / expected).sum() < 2 * len(place), kept
    assert kept.max() < 60


def test_one_buffer_begins_empty_with_another_strategy():
    replay, watch = ReplayPlugin(12), Watch()
    learn(mlp(), stream([[0, 1]] * 2), replay)
    learn(mlp(), stream([[0, 1]])[:1], replay, watch)
    assert all(len(x) == 10 for x, *_ in watch.seen[0])


def test_replay_keeps_task_labels():
    watch = Watch()
    learn(as_multitask(mlp(), "classifier"), stream([[0, 1]] * 3, task_incremental=True), ReplayPlugin(9), watch)
    tasks = {t: {int(label) for _, _, tasks in watch.seen[t] for label in tasks} for t in range(3)}
    assert tasks == {0: {0}, 1: {0, 1}, 2: {0, 1, 2}}


def test_l2_leaves_what_has_no_gradient_alone():
    model = mlp()
    model.aside = nn.Linear(2, 2)
    plugin = L2Plugin(1.0)
    learn(model, stream([[0, 1]])[:1], plugin)
    assert plugin.importances.keys() == {name for name, _ in model.named_parameters() if not name.startswith("aside")}


def test_a_buffer_keeps_images_as_in_evaluation():
    """Whatever their transformations in training do to them."""
    x, y = torch.randn(20, 6), torch.arange(20) % 2
    groups = TransformGroups({"train": (lambda sample: sample * 100, None), "eval": (None, None)})
    tensors = TensorDataset(x, y, torch.zeros(20).long())
    tensors.targets = y.tolist()
    data = as_classification_dataset(tensors, transform_groups=groups)
    experience = benchmark_from_datasets(train=[data]).train_stream[0]
    replay = ReplayPlugin(20)
    learn(mlp(), [experience], replay)
    assert rows(replay._buffer[0]) == rows(x)


def test_l2_has_the_options_of_every_penalty():
    plugin = L2Plugin(1.0, penalty_step="proximal", exclude="classifier.*", consolidate_every=10)
    assert (plugin.penalty_step, plugin.exclude, plugin.consolidate_every) == ("proximal", ["classifier.*"], 10)


def test_a_buffer_may_hold_one_sample():
    replay, watch = ReplayPlugin(1), Watch()
    learn(mlp(), stream([[0, 1]] * 2)[:1], replay, watch)
    assert [len(column) for column in replay._buffer] == [1, 1, 1]


def test_a_state_of_a_buffer_stays_as_it_is():
    replay = ReplayPlugin(12)
    first, second = stream([[0, 1]] * 2)
    strategy = learn(mlp(), [first], replay)
    state = replay.state_dict()
    strategy.train(second)
    other = ReplayPlugin(12)
    other.load_state_dict(state)
    assert [len(column) for column in other._buffer] == [12, 12, 12]
    assert rows(other._buffer[0]) <= rows(torch.stack([x for x, *_ in first.dataset]))


class Growing(torch.utils.data.Dataset):
    """Samples of different length, padded in a minibatch."""

    targets = (0, 1) * 10

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, n):
        return torch.ones(1 + n % 6), self.targets[n]

    @staticmethod
    def collate_fn(samples):
        padded = [nn.functional.pad(x, (0, 6 - len(x))) for x, *_ in samples]
        return [torch.stack(padded), *(torch.tensor([sample[place] for sample in samples]) for place in (1, 2))]


def test_a_buffer_takes_samples_as_a_minibatch_does():
    replay = ReplayPlugin(20)
    labels = [DataAttribute(list(Growing.targets), "targets"), TaskLabels([0] * 20)]
    data = AvalancheDataset([Growing()], data_attributes=labels)
    learn(mlp(), with_task_labels(benchmark_from_datasets(train=[data])).train_stream, replay)
    assert replay._buffer[0].shape == (20, 6)
    assert sorted(replay._buffer[0].sum(1).tolist()) == sorted(1 + n % 6 for n in range(20))


def test_replay_of_nothing_is_refused():
    with pytest.raises(ValueError, match="mem_size must be at least 1; got 0"):
        ReplayPlugin(0)


# --- Avalanche's synaptic intelligence --------------------------------------------------------------------------------


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def learn_with(plugin):
    torch.manual_seed(4)
    return weights(learn(mlp(), stream([[0, 1]] * 3), *plugin).model)


def test_synaptic_intelligence_has_an_effect():
    """As it is released it has none here: when this fails, Avalanche is mended and our copy can go."""
    naive = learn_with([])
    assert torch.equal(learn_with([SynapticIntelligencePlugin(1e4)]), naive)
    assert not torch.equal(learn_with([WorkingSynapticIntelligencePlugin(1e4)]), naive)
    assert torch.equal(learn_with([WorkingSynapticIntelligencePlugin(0.0)]), naive)


@pytest.mark.parametrize(("clip_to", "negatives"), [(0.001, True), (1e9, True), (1e9, False)])
def test_synaptic_intelligence_keeps_the_path_integral(clip_to, negatives):
    """Zenke et al. 2017, eqs. 3-5: omega = - sum of gradient x step, over the squared distance, summed over tasks."""
    plugin, path = WorkingSynapticIntelligencePlugin(0.0, 1e-3, clip_to, negatives), Path()
    model = learn(mlp(), stream([[0, 1]])[:1], plugin, path).model
    for name, p in model.named_parameters():
        expected = -path.integral[name] / ((p.detach() - path.start[name]).square() + 1e-3)
        found = plugin.ewc_data[1][name].data
        torch.testing.assert_close(
            found, expected.flatten().clamp(None if negatives else 0, clip_to), rtol=1e-3, atol=1e-7
        )
        assert torch.equal(plugin.ewc_data[0][name].data, p.detach().flatten())


class Path(SupervisedPlugin):
    """Sums gradient x step, parameter by parameter."""

    def before_training_exp(self, strategy, **kwargs):
        self.start = {name: p.detach().clone() for name, p in strategy.model.named_parameters()}
        self.integral = {name: torch.zeros_like(p) for name, p in self.start.items()}

    def before_update(self, strategy, **kwargs):
        self.before = {name: (p.detach().clone(), p.grad.clone()) for name, p in strategy.model.named_parameters()}

    def after_update(self, strategy, **kwargs):
        for name, p in strategy.model.named_parameters():
            old, gradient = self.before[name]
            self.integral[name] += gradient * (p.detach() - old)


# --- Avalanche's MIR --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("released", [True, False])
def test_mir_replays_what_the_latest_experience_brought(released):
    """As it is released it does not: when this fails, Avalanche is mended and our copy can go."""
    replayed = []

    class Listening(MIRPlugin if released else WorkingMIRPlugin):
        def before_backward(self, strategy, **kwargs):
            if self.replay_loader is not None:
                replayed.append((strategy.experience.current_experience, {int(y) for y in next(self.replay_loader)[1]}))
            super().before_backward(strategy, **kwargs)

    experiences = stream([[0, 1], [2, 3], [4, 5]])
    learn(nn.Linear(6, 6), experiences, Listening(batch_size_mem=4, mem_size=30, subsample=30))
    found = {t: set().union(*(classes for when, classes in replayed if when == t)) for t in (1, 2)}
    assert found == ({1: set(), 2: {0, 1}} if released else {1: {0, 1}, 2: {0, 1, 2, 3}})
    assert all(len(classes) > 1 for when, classes in replayed)


def test_mir_draws_its_candidates_anew_and_all_that_is_kept_is_too_few_where_all_would_be_replayed():
    experiences = stream([[0, 1]])

    def candidates(batch_size_mem):
        plugin = WorkingMIRPlugin(batch_size_mem, mem_size=30, subsample=30)
        learn(mlp(), experiences, plugin)
        return plugin.replay_loader

    loader = candidates(29)
    first, second = next(loader)[0], next(loader)[0]
    assert rows(first) == rows(second)
    assert not torch.equal(first, second), "in another order"
    assert candidates(30) is None, "as in Avalanche"


@pytest.mark.parametrize(("mem_size", "subsample"), [(28, 20), (20, 20), (24, 20), (30, 20), (18, 20)])
def test_mir_replays_as_many_in_every_step(mem_size, subsample):
    replayed = []

    class Listening(WorkingMIRPlugin):
        def before_backward(self, strategy, **kwargs):
            if self.replay_loader is not None:
                asked = strategy.model.register_forward_hook(lambda module, x, y: replayed.append(len(y)))
                super().before_backward(strategy, **kwargs)
                asked.remove()

    learn(nn.Linear(6, 6), stream([[0, 1], [2, 3]]), Listening(10, mem_size=mem_size, subsample=subsample))
    assert set(replayed[2::3]) == {10}, "behind a pass of each of two networks over the candidates"


# --- Avalanche's MAS --------------------------------------------------------------------------------------------------


class Constant(SupervisedPlugin):
    """The loss is a number of which nothing is to be learned, and every experience begins with other weights."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def before_training_exp(self, strategy, **kwargs):
        with torch.no_grad():
            for p in strategy.model.parameters():
                p += 0.1

    def before_backward(self, strategy, **kwargs):
        strategy.loss = strategy.loss * 0 + self.value


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_mas_goes_on_where_the_loss_is_zero(value):
    """As it is released it ends there: when this fails, Avalanche is mended and our copy can go."""

    def learned(plugin):
        torch.manual_seed(0)
        return weights(learn(mlp(), stream([[0, 1]] * 2), Constant(value), plugin).model)

    assert not torch.equal(learned(WorkingMASPlugin(1.0)), learned(WorkingMASPlugin(0.0))), "there is a penalty"
    if value:
        assert torch.equal(learned(WorkingMASPlugin(1.0)), learned(MASPlugin(1.0)))
    else:
        with pytest.raises(ValueError, match="Loss is not available"):
            learned(MASPlugin(1.0))


# --- Avalanche's Riemannian walk --------------------------------------------------------------------------------------


def test_a_riemannian_walk_goes_on_in_training_mode():
    """As it is released it does not: when this fails, Avalanche is mended and our copy can go."""

    def learned(*plugins):
        torch.manual_seed(0)
        model = mlp()
        model.features = nn.Sequential(model.features, nn.BatchNorm1d(5), nn.Dropout(0.3))
        learn(model, stream([[0, 1]] * 2), *plugins)
        return torch.cat([value.flatten() for value in model.state_dict().values()])

    naive = learned()
    assert torch.equal(learned(WorkingRWalkPlugin(0.0, delta_t=2)), naive)
    assert not torch.equal(learned(WorkingRWalkPlugin(1.0, delta_t=2)), naive), "there is a penalty"
    released = mlp()
    released.features = nn.Sequential(released.features, nn.BatchNorm1d(5))
    learn(released, stream([[0, 1]] * 2), RWalkPlugin(0.0, delta_t=2))
    assert not released.features[1].running_mean.any(), "it begins at zero"


def test_a_riemannian_walk_without_a_score_is_refused():
    with pytest.raises(ValueError, match=r"every 100 steps \(delta_t\); the first experience has none"):
        learn(mlp(), stream([[0, 1]] * 2), WorkingRWalkPlugin(1.0, delta_t=100))


class Walk(SupervisedPlugin):
    """Keeps the gradient and the parameters of every step, flat."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def before_update(self, strategy, **kwargs):
        gradient = torch.cat([p.grad.flatten() for p in strategy.model.parameters()])
        self.steps.append([gradient, weights(strategy.model)])

    def after_update(self, strategy, **kwargs):
        self.steps[-1].append(weights(strategy.model))


def test_a_riemannian_walk_scores_what_a_step_gains():
    """Chaudhry et al. 2018, eqs. 6-8: the gain in loss over the distance in the metric of the Fisher's average."""
    alpha, walk, plugin = 0.7, Walk(), WorkingRWalkPlugin(1.0, ewc_alpha=0.7, delta_t=1)
    learn(mlp(), stream([[0, 1]])[:1], plugin, walk)
    fisher = walk.steps[0][0].square()
    score = torch.zeros_like(fisher)
    for n, (gradient, before, after) in enumerate(walk.steps):
        if n:
            fisher = alpha * gradient.square() + (1 - alpha) * fisher
        moved = after - before
        score += -gradient * moved / (0.5 * fisher * moved.square() + torch.finfo(score.dtype).eps)
    expected = fisher / fisher.max() + score.clamp(min=0) / score.max()
    found = torch.cat([plugin.exp_penalties[name].data.flatten() for name in plugin.exp_penalties])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found > 0.1).sum() > 3


def test_a_riemannian_walk_takes_heads_that_are_added():
    """As it is released it does not: when this fails, Avalanche is mended and our copy can go."""

    def learned(plugin):
        torch.manual_seed(0)
        experiences = stream([[0, 1]] * 3, task_incremental=True)
        return weights(learn(as_multitask(mlp(), "classifier"), experiences, plugin).model)

    with pytest.raises(KeyError, match=r"classifiers\.1"):
        learned(RWalkPlugin(1.0, delta_t=2))
    assert not torch.equal(learned(WorkingRWalkPlugin(1.0, delta_t=2)), learned(WorkingRWalkPlugin(0.0, delta_t=2)))


def test_a_riemannian_walk_averages_the_scores_of_experiences():
    own = []

    class Listening(WorkingRWalkPlugin):
        def after_training_exp(self, strategy, *args, **kwargs):
            own.append({name: score.data.clone() for name, score in self.checkpoint_scores.items()})
            super().after_training_exp(strategy, *args, **kwargs)

    plugin = Listening(1.0, delta_t=3)
    learn(mlp(), stream([[0, 1]] * 2), plugin)
    first, second = own
    assert all(score.any() for score in (*first.values(), *second.values()))
    for name, score in plugin.exp_scores.items():
        torch.testing.assert_close(score.data, (first[name] + second[name]) / 2)


def test_a_riemannian_walk_without_a_gradient_is_refused():
    class Flat(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter:
                strategy._criterion = lambda outputs, y: outputs.sum() * 0

    with pytest.raises(ValueError, match="the latest minibatches has no gradient"):
        learn(mlp(), stream([[0, 1]] * 2), Flat(), WorkingRWalkPlugin(1.0, ewc_alpha=1.0, delta_t=2))


class Tied(nn.Module):
    """The classifier's weight is an embedding's, and the classifier has a second name before its own."""

    def __init__(self):
        super().__init__()
        self.embedding, self.between, self.last = nn.Embedding(2, 3), nn.Linear(3, 3), nn.Linear(3, 2, bias=False)
        self.classifier = self.last
        self.last.weight = self.embedding.weight

    def forward(self, x):
        return self.classifier(self.between(self.embedding((x.flatten(1)[:, :2] > 0).long()).mean(1)))


def test_what_the_classifier_shares_goes_on_learning():
    model, experiences, plugin = Tied(), stream([[0, 1]] * 2), FrozenBackbonePlugin()
    strategy = learn(model, experiences[:1], plugin)
    before = model.classifier.weight.detach().clone()
    strategy.train(experiences[1])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"between.weight", "between.bias"}
    assert not torch.equal(model.classifier.weight, before)


def test_the_backbone_of_a_compiled_network_is_frozen():
    model, experiences = mlp(), stream([[0, 1]] * 2)
    plugin = FrozenBackbonePlugin()
    learn(model, experiences[:1], plugin)
    before = model.features[0].weight.detach().clone()
    learn(torch.compile(model, backend="eager"), experiences[1:], plugin)
    assert not model.features[0].weight.requires_grad
    assert torch.equal(model.features[0].weight, before)
