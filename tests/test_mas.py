"""MAS against brute force, one sample at a time, and against activations multiplied by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks.utils import TransformGroups, make_avalanche_dataset
from avalanche.training.plugins import MASPlugin as AvalancheMASPlugin
from torch import nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from engrams.strategies import MASPlugin
from engrams.strategies.importance import mas_importance
from tests.test_ewc import learn, mlp, stream
from tests.test_importance import CLASSES, MODELS, assert_same, batch_norm, cnn, multi_head, outputs_of, tied
from tests.test_importance import mlp as dropout_mlp
from tests.test_importance import problem as problem
from tests.test_penalties import Renaming


def brute_force(model, dataset):
    """Omega = 1/N sum_n |d ||f(x_n)||^2 / d theta|, by the definition."""
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    for x, _, task in dataset:
        model.zero_grad()
        outputs_of(model, x, task).square().sum().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.abs() / len(dataset)
    return total


@pytest.mark.parametrize("problem", MODELS, indirect=True)
def test_global_equals_brute_force(problem):
    model, dataset = problem
    model.train()
    found = mas_importance(model, dataset)
    assert model.training, "the model's own mode is restored"
    assert_same(found, brute_force(model, dataset))
    assert sum(tensor.sum() for tensor in found.values()) > 0


@pytest.mark.parametrize("variant", ["global", "local", "batched"])
@pytest.mark.parametrize("problem", [dropout_mlp, cnn, multi_head], indirect=True)
def test_labels_are_never_read(problem, variant):
    model, dataset = problem
    x, y, tasks = dataset.tensors
    found = mas_importance(model, dataset, variant)
    permuted = mas_importance(model, TensorDataset(x, y[torch.randperm(len(y))], tasks), variant)
    assert all(torch.equal(found[name], permuted[name]) for name in found)
    if not hasattr(model, "known_train_tasks_labels"):
        for unlabelled in (TensorDataset(x), list(x)):
            without = mas_importance(model, unlabelled, variant)
            assert all(torch.equal(found[name], without[name]) for name in found)


@pytest.mark.parametrize("problem", [dropout_mlp, multi_head], indirect=True)
def test_local_is_the_product_of_activations(problem):
    model, dataset = problem
    model.eval()
    inner = model.model if hasattr(model, "model") else model
    (first, second) = (inner.features[0], inner.features[3][0])
    found = mas_importance(model, dataset, "local")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def add(name, before, after):
        for i, f_i in enumerate(after):
            for j, f_j in enumerate(before):
                expected[f"{name}.weight"][i, j] += f_i.abs() * f_j.abs() / len(dataset)
            expected[f"{name}.bias"][i] += f_i.abs() / len(dataset)

    prefix = "model." if inner is not model else ""
    with torch.no_grad():
        for x, _, task in dataset:
            f0 = x.flatten()
            f1 = (first.weight @ f0 + first.bias).clamp(min=0)
            f2 = (second.weight @ f1 + second.bias).clamp(min=0)
            add(f"{prefix}features.0", f0, f1)
            add(f"{prefix}features.3.0", f1, f2)
            out = outputs_of(model, x, task)[0]
            out = torch.where(out == -1000, 0.0, out)  # Avalanche's value of a unit whose class has not been met
            add(f"classifier.classifiers.{int(task)}.classifier" if prefix else "classifier", f2, out)
    assert_same(found, expected)


@pytest.mark.parametrize("problem", [cnn], indirect=True)
def test_local_of_a_convolution_sums_its_positions_within_a_sample(problem):
    model, dataset = problem
    found = mas_importance(model, dataset, "local")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, *_ in dataset:
        f = x[None]
        for name, layer in (("0", model[0]), ("2", model[2])):
            out = layer(f)
            positions = functional.unfold(
                f, layer.kernel_size, dilation=layer.dilation, padding=layer.padding, stride=layer.stride
            )[0].T
            after = out.clamp(min=0)[0].flatten(1).T
            products = sum(torch.outer(a, p) for a, p in zip(after, positions, strict=True))
            expected[f"{name}.weight"] += products.view_as(layer.weight).abs().detach() / len(dataset)
            if layer.bias is not None:
                expected[f"{name}.bias"] += after.sum(0).abs().detach() / len(dataset)
            f = out.clamp(min=0)
        out = model[5](f.flatten(1))
        expected["5.weight"] += torch.outer(out[0].abs(), f.flatten().abs()).detach() / len(dataset)
        expected["5.bias"] += out[0].abs().detach() / len(dataset)
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("problem", "message"),
    [(batch_norm, "'2' is a BatchNorm1d: use variant='global'"), (tied, "is a Tanh")],
    indirect=["problem"],
)
def test_local_refuses_other_layers_by_name(problem, message):
    with pytest.raises(ValueError, match=message):
        mas_importance(*problem, "local")


def test_local_refuses_a_convolution_in_groups_and_leaves_a_frozen_classifier_out():
    model = nn.Sequential(nn.Conv2d(2, 2, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'0' is a Conv2d with groups"):
        mas_importance(model, TensorDataset(torch.randn(3, 2, 2, 2)), "local")
    torch.manual_seed(0)
    model, data = mlp(), TensorDataset(torch.randn(9, 6))
    whole = mas_importance(model, data, "local")
    model.classifier.requires_grad_(False)
    frozen = mas_importance(model, data, "local")
    assert_same(frozen, {name: whole[name] for name in whole if not name.startswith("classifier")})


def test_local_refuses_a_layer_that_runs_twice():
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="layers that run once a sample"):
        mas_importance(nn.Sequential(layer, nn.ReLU(), layer), TensorDataset(torch.randn(3, 4)), "local")


def test_local_refuses_a_layer_that_runs_twice_for_a_later_sample():
    class Later(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.layer(x).relu()
            return self.head(torch.where(x[:, :1] > 2, self.layer(h).relu(), h) if (x[:, 0] > 2).any() else h)

    x = torch.rand(6, 4)
    assert mas_importance(Later(), TensorDataset(x), "local")
    x[5, 0] = 3
    with pytest.raises(ValueError, match="layers that run once a sample"):
        mas_importance(Later(), TensorDataset(x), "local")


def test_batched_is_what_avalanche_computes_and_less():
    torch.manual_seed(0)
    model, data = mlp(), stream([[0, 1]])[0].dataset
    theirs = AvalancheMASPlugin()._get_importance(
        SimpleNamespace(
            model=model,
            experience=SimpleNamespace(dataset=data),
            train_mb_size=8,
            device="cpu",
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        )
    )
    batched = mas_importance(model, data, "batched", batch_size=8)
    assert_same(batched, {name: theirs[name].data for name in theirs}, rtol=1e-5)
    per_sample = mas_importance(model, data)
    assert_same(mas_importance(model, data, "batched", batch_size=1), per_sample)
    # The absolute value of a mean is at most the mean of absolute values, and less where gradients differ in sign.
    assert all((batched[name] <= per_sample[name] * (1 + 1e-5)).all() for name in batched)
    assert sum(b.sum() for b in batched.values()) < 0.9 * sum(p.sum() for p in per_sample.values())


# --- the plugin -------------------------------------------------------------------------------------------------------


class Spy(MASPlugin):
    """Keeps what each experience left behind."""

    def consolidate(self, importances, anchors):
        self.seen = [*getattr(self, "seen", []), (importances, anchors)]
        super().consolidate(importances, anchors)


def test_penalty_equals_the_papers_sum():
    """lambda, not lambda / 2; Omega summed over experiences; around the latest optimum."""
    plugin = Spy(3.0)
    model = learn(mlp(), stream([[0, 1]] * 3), plugin).model
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    now = dict(model.named_parameters())
    (o1, _), (o2, _), (o3, a3) = plugin.seen
    expected = sum(3.0 * ((o1[n] + o2[n] + o3[n]) * (now[n] - a3[n]) ** 2).sum().item() for n in now)
    assert plugin.penalty(model).item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0


@pytest.mark.parametrize("step", ["gradient", "proximal"])
def test_the_loss_of_a_step_has_the_penalty_or_its_parameters_are_pulled_but_not_both(step):
    plugin, losses, stepped = MASPlugin(1.0, penalty_step=step), [], []
    strategy = learn(mlp(), stream([[0, 1]])[:1], plugin)
    with torch.no_grad():
        for p in strategy.model.parameters():
            p.add_(0.5)
    start = {name: p.detach().clone() for name, p in strategy.model.named_parameters()}
    penalty = sum((plugin.importances[n] * 0.25).sum() for n in start)

    class Watch(MASPlugin):
        def after_backward(self, strategy, **kwargs):
            losses.append((strategy.loss.item(), strategy.mb_output.detach(), strategy.mb_y))

        def after_update(self, strategy, **kwargs):
            gradients = {name: p.grad for name, p in strategy.model.named_parameters()}
            stepped.append(
                all(torch.equal(p, start[n] - 0.05 * gradients[n]) for n, p in strategy.model.named_parameters())
            )

    strategy.plugins.append(Watch(0.0))
    strategy.train(stream([[0, 1]])[0])
    loss, outputs, y = losses[0]
    expected = functional.cross_entropy(outputs, y) + (penalty if step == "gradient" else 0)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert stepped[0] == (step == "gradient"), "only the optimiser's"


def test_heads_and_units_that_are_new_have_importance_zero():
    plugin = Spy(1.0)
    model = learn_multi_head(plugin)
    head = "classifier.classifiers.{}.classifier.weight".format
    for experience, (importances, _) in enumerate(plugin.seen):
        for task in range(3):
            assert (importances.get(head(task), torch.zeros(1)).sum() > 0) == (task == experience)
    assert plugin.importances.keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def learn_multi_head(*plugins):
    from avalanche.models import as_multitask

    return learn(as_multitask(mlp(), "classifier"), stream([[0, 1]] * 3, task_incremental=True), *plugins).model


@pytest.mark.parametrize("kind", ["stream", "datasets", "dataset"])
def test_importance_data(kind):
    """A stream or a list gives its t-th entry after experience t, a dataset itself each time."""
    train, other = stream([[0, 1]] * 2), stream([[0, 1], [0, 1]], samples=24)
    data = {"stream": other, "datasets": [e.dataset for e in other], "dataset": other[1].dataset}[kind]
    plugin = Spy(1.0, importance_data=data)
    model = mlp()
    for index in range(2):
        learn_one(model, train[index], plugin, index)
        measured_on = other[1 if kind == "dataset" else index].dataset
        expected = mas_importance(model, measured_on)
        found, _ = plugin.seen[-1]
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def learn_one(model, experience, plugin, index):
    strategy = learn(model, [], plugin)
    strategy.clock.train_exp_counter = index
    strategy.train(experience)


def test_importance_data_may_be_a_subset_of_torchs():
    experience = stream([[0, 1]])[0]
    some = Subset(experience.dataset, range(3, 20))
    plugin = MASPlugin(1.0, importance_data=some)
    model = learn(mlp(), [experience], plugin).model
    assert_same(plugin.importances, mas_importance(model, some))


def test_importance_of_one_sample_is_one_of_the_whole():
    experience = stream([[0, 1]])[0]
    one = experience.dataset.subset([0])
    plugin = MASPlugin(1.0, importance_data=one)
    model = learn(mlp(), [experience], plugin).model
    assert_same(plugin.importances, mas_importance(model, one))


def test_mas_has_the_options_of_every_penalty():
    plugin = MASPlugin(1.0, penalty_step="proximal", exclude="classifier.*", consolidate_every=10)
    assert (plugin.penalty_step, plugin.exclude, plugin.consolidate_every) == ("proximal", ["classifier.*"], 10)


def test_importance_data_that_end_too_early_are_told_of_before_training():
    first, second = stream([[0, 1]] * 2)
    strategy = learn(mlp(), [first], MASPlugin(1.0, importance_data=[first]))
    before = {name: p.detach().clone() for name, p in strategy.model.named_parameters()}
    with pytest.raises(ValueError, match="there is none for experience 1"):
        strategy.train(second)
    assert all(torch.equal(p, before[name]) for name, p in strategy.model.named_parameters())


def test_importance_data_are_as_in_evaluation():
    """Whatever their transformations in training do to them."""
    x = torch.randn(20, 6)
    lots = TransformGroups({"train": (lambda sample: sample * 100, None), "eval": (None, None)})
    data = TensorDataset(x, torch.zeros(20, dtype=torch.long))
    augmented = make_avalanche_dataset(data, transform_groups=lots).train()
    torch.manual_seed(0)
    plugin = MASPlugin(1.0, importance_data=augmented)
    model = learn(mlp(), stream([[0, 1]]), plugin).model
    assert_same(plugin.importances, mas_importance(model, data))


def test_what_was_frozen_since_is_not_observed():
    plugin = MASPlugin(1.0)
    model = learn(mlp(), stream([[0, 1]]), plugin).model
    before = dict(plugin.importances)
    model.features[0].weight.requires_grad_(False)
    plugin.observe(model, TensorDataset(torch.randn(12, 6)))
    changed = {name for name, value in plugin.importances.items() if not torch.equal(value, before[name])}
    assert changed == before.keys() - {"features.0.weight"}


def test_what_is_observed_counts_whatever_the_network_is_wrapped_in_and_not_under_other_names():
    later = TensorDataset(torch.randn(12, 6))
    plugins = [MASPlugin(1.0), MASPlugin(1.0)]
    for plugin, wrap in zip(plugins, (Renaming, copy.deepcopy), strict=True):
        torch.manual_seed(0)
        strategy = learn(mlp(), stream([[0, 1]]), plugin)
        plugin.observe(wrap(strategy.model), later)
        plugin.penalty(strategy.model)  # goes back to the model's own names
    assert_same(*(plugin.importances for plugin in plugins))
    with pytest.raises(ValueError, match="no parameter under a name of which there is an importance"):
        plugins[1].observe(Renaming(copy.deepcopy(strategy.model)), later)


def test_what_is_observed_is_measured_in_minibatches_of_that_size():
    torch.manual_seed(0)
    later = TensorDataset(torch.randn(12, 6))
    plugin = MASPlugin(1.0, "batched", batch_size=4)
    model = learn(mlp(), stream([[0, 1]]), plugin).model
    before, count = dict(plugin.importances), len(stream([[0, 1]])[0].dataset)
    plugin.observe(model, later)
    found = mas_importance(model, later, "batched", batch_size=4)
    assert_same(
        plugin.importances, {name: (count * old + 12 * found[name]) / (count + 12) for name, old in before.items()}
    )


def test_importance_on_a_subset_of_classes():
    experience = stream([[0, 1, 2]], samples=30)[0]
    zeros = experience.dataset.subset([i for i, y in enumerate(experience.dataset.targets) if y == 0])
    plugin = MASPlugin(1.0, importance_data=zeros)
    model = learn(mlp(3), [experience], plugin).model
    assert_same(plugin.importances, mas_importance(model, zeros))
    whole = mas_importance(model, experience.dataset)
    assert any(not torch.allclose(plugin.importances[name], whole[name]) for name in whole)


def test_what_importance_data_lacks_is_said():
    with pytest.raises(ValueError, match="importance_data has 1 entries; there is none for experience 1"):
        learn(mlp(), stream([[0, 1]] * 2), MASPlugin(1.0, importance_data=stream([[0, 1]])))
    with pytest.raises(ValueError, match="the dataset is empty"):
        learn(mlp(), stream([[0, 1]]), MASPlugin(1.0, importance_data=TensorDataset(torch.zeros(0, 6))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1.0,), "must be at least 0; got -1.0"), ((1.0, "hebbian"), "variant must be one of global, local, batched")],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MASPlugin(*arguments)
    if len(arguments) > 1:
        with pytest.raises(ValueError, match=message):
            mas_importance(mlp(), TensorDataset(torch.zeros(3, 6)), arguments[1])


@pytest.mark.parametrize("problem", [dropout_mlp], indirect=True)
def test_the_mean_does_not_depend_on_how_often_the_data_is_repeated(problem):
    model, dataset = problem
    assert_same(mas_importance(model, ConcatDataset([dataset] * 3)), mas_importance(model, dataset))
    assert mas_importance(model, dataset)["classifier.weight"].shape == (CLASSES, 7)
