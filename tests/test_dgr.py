"""Deep generative replay against its equation, through Avalanche's own hooks, without the rest of the suite."""

import copy
from typing import ClassVar

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.models import IncrementalClassifier, SimpleMLP, as_multitask, avalanche_forward
from avalanche.training.plugins import LwFPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from engrams.benchmarks.data.streams import make_benchmark, prepared
from engrams.benchmarks.protocols import registry as protocol
from engrams.strategies import DeepGenerativeReplay, EWCPlugin, MASPlugin, catalogue
from engrams.strategies.dgr import Scholar
from engrams.strategies.experiences import Met
from engrams.strategies.generator_training import GeneratorPlugin
from engrams.strategies.generators import VAE, WGANGP, ImageSpec, PastImages
from engrams.strategies.heads import Heads
from engrams.strategies.icarl import ICaRLPlugin
from tests.test_ewc import mlp, quiet, stream

SPEC = ImageSpec((6,), low=-8.0, high=8.0)
BATCH = 10


def vae(seed=0):
    return VAE(SPEC, epochs=2, batch_size=BATCH, seed=seed, latent_size=3, hidden_sizes=(8,))


class KnownImages(VAE):
    """Replays the same ten images for ever."""

    images = torch.linspace(-2, 2, 6 * BATCH).view(BATCH, 6)

    def sample(self, n):
        return self.images.repeat(n // BATCH, 1)


def arguments(model, *plugins, epochs=2):
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": BATCH,
        "train_epochs": epochs,
        "plugins": list(plugins),
        "evaluator": quiet(),
    }


def scholar(model, *plugins, generator=None, epochs=2, **options):
    return DeepGenerativeReplay(generator=generator or vae(), **options, **arguments(model, *plugins, epochs=epochs))


def learn(strategy, experiences):
    torch.manual_seed(7)  # of the order of the minibatches and of the heads' initialisation
    for experience in experiences:
        strategy.train(experience)
    return strategy


def growing_mlp():
    model = mlp()
    model.classifier = IncrementalClassifier(5, initial_out_features=2)
    return model


class Losses(SupervisedPlugin):
    """At every step the loss, and what it should be by the function given."""

    def __init__(self, expected):
        super().__init__()
        self.expected, self.pairs = expected, []

    def before_backward(self, strategy, **kwargs):
        self.pairs.append((strategy.loss.item(), self.expected(strategy).item()))


# --- the equation -----------------------------------------------------------------------------------------------------


def by_hand(labels):
    """Eq. 2, written out with the known replay."""

    def expected(strategy):
        new = functional.cross_entropy(strategy.model(strategy.mb_x), strategy.mb_y)
        t = strategy.clock.train_exp_counter + 1
        if t == 1:
            return new
        outputs = strategy.model(KnownImages.images).log_softmax(dim=1)
        answers = strategy.previous.solver(KnownImages.images).softmax(dim=1)
        if labels == "hard":
            old = -torch.stack([outputs[n, answers[n].argmax()] for n in range(BATCH)]).mean()
        else:
            old = -(answers * outputs[:, : answers.shape[1]]).sum(dim=1).mean()
        return new / t + (1 - 1 / t) * old

    return expected


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("make", [mlp, growing_mlp])
def test_the_loss_of_a_mixed_batch_is_the_equation_by_hand(labels, make):
    losses = Losses(by_hand(labels))
    growing = make is growing_mlp
    experiences = stream([[0, 1], [2, 3], [4, 5]] if growing else [[0, 1]] * 3)
    generator = KnownImages(SPEC, epochs=1, batch_size=BATCH)
    learn(scholar(make(), losses, generator=generator, replay_labels=labels), experiences)
    assert len(losses.pairs) == 3 * 2 * 4
    for found, expected in losses.pairs:
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_the_only_class_so_far_of_a_growing_head_is_a_class(labels):
    model = mlp()
    model.classifier = IncrementalClassifier(5, initial_out_features=1)
    losses = Losses(by_hand(labels))
    learn(scholar(model, losses, generator=KnownImages(SPEC, epochs=1), replay_labels=labels), stream([[0], [1], [2]]))
    for found, expected in losses.pairs:
        assert found == pytest.approx(expected, rel=1e-5)


def binary(outputs, labels):
    """Class 1 counts twice."""
    assert labels.shape == (len(outputs),)
    return functional.binary_cross_entropy_with_logits(
        outputs.flatten(), labels.float(), pos_weight=outputs.new_tensor(2)
    )


class OneLogit(nn.Linear):
    """Its outputs are [N, 1], or flat, [N]."""

    def __init__(self, flat):
        super().__init__(6, 1)
        self.flat = flat

    def forward(self, x):
        outputs = super().forward(x)
        return outputs.squeeze(1) if self.flat else outputs


def binary_by_hand(labels):
    """Eq. 2 with the known replay, one sample at a time."""

    def mean(logits, targets):
        pairs = zip(logits.flatten(), targets, strict=True)
        return torch.stack([-2 * y * z.sigmoid().log() - (1 - y) * (1 - z.sigmoid()).log() for z, y in pairs]).mean()

    def expected(strategy):
        new = mean(strategy.model(strategy.mb_x), strategy.mb_y)
        if strategy.previous is None:
            return new
        answers = [float(z) for z in strategy.previous.solver(KnownImages.images).sigmoid()]
        targets = [float(one > 0.5) if labels == "hard" else one for one in answers]
        assert 0 < sum(one > 0.5 for one in answers) < BATCH
        return strategy.new_share * new + (1 - strategy.new_share) * mean(strategy.model(KnownImages.images), targets)

    return expected


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("flat", [False, True])
def test_one_logit_answers_by_its_sign_or_its_sigmoid(labels, flat):
    torch.manual_seed(1)
    losses, generator = Losses(binary_by_hand(labels)), KnownImages(SPEC, epochs=1)

    def made(model, *plugins):
        template = arguments(model, *plugins, epochs=1) | {"criterion": binary}
        return DeepGenerativeReplay(generator=generator, replay_labels=labels, **template)

    first, second, third = stream([[0, 1]] * 3)
    strategy = learn(made(OneLogit(flat), losses), [first, second])
    gone_on = made(strategy.model, losses)
    gone_on.load_state_dict(strategy.state_dict())
    learn(gone_on, [third])
    assert len(losses.pairs) == 3 * 4
    for found, expected in losses.pairs:
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("r", "expected"),
    [("experiences", [1, 1 / 2, 1 / 3]), ("classes", [1, 1 / 3, 3 / 6]), (0.3, [1, 0.3, 0.3]), (1, [1, 1, 1])],
)
def test_policies_of_the_new_experiences_share(r, expected):
    found = []

    class Shares(GeneratorPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            found.append(strategy.new_share)

    learn(scholar(growing_mlp(), Shares(), r=r, epochs=1), stream([[0, 1], [2], [3, 4, 5]]))
    assert found == pytest.approx(expected)


def test_with_r_of_one_the_scholar_is_naive_training_to_the_bit():
    experiences = stream([[0, 1], [2, 3], [4, 5]])
    torch.manual_seed(3)
    naive = SupervisedTemplate(**arguments(growing_mlp()))
    torch.manual_seed(3)
    ours = scholar(growing_mlp(), r=1)
    learn(naive, experiences)
    learn(ours, experiences)
    for (name, p), q in zip(naive.model.named_parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    alone = vae()
    for experience in experiences:
        list(alone.learn(torch.stack([x for x, *_ in experience.dataset])))
    for (name, p), q in zip(alone.named_parameters(), ours.generator.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), name


def test_with_r_of_one_nothing_is_asked_of_a_solver():
    """Not which labels its criterion takes, either: none will be made."""
    strategy = scholar(growing_mlp(), r=1, replay_labels="soft", epochs=1)
    strategy._criterion = nn.MultiMarginLoss()
    learn(strategy, stream([[0, 1], [2, 3]]))


def test_below_one_it_is_not():
    experiences = stream([[0, 1], [2, 3]])
    torch.manual_seed(3)
    one = scholar(growing_mlp(), r=1)
    torch.manual_seed(3)
    half = scholar(growing_mlp(), r=0.5)
    learn(one, experiences)
    learn(half, experiences)
    assert not torch.equal(one.model.classifier.classifier.weight, half.model.classifier.classifier.weight)
    assert not torch.equal(one.generator.sample(5), half.generator.sample(5))


def kept(network):
    """All tensors, what batch norm remembers among them; not where a source of random numbers has got to."""
    return {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}


def test_the_previous_scholar_does_not_change_while_the_new_one_learns():
    class Frozen(GeneratorPlugin):
        checked: ClassVar = set()

        def after_train_dataset_adaptation(self, strategy, **kwargs):
            self.before = copy.deepcopy([kept(network) for network in strategy.previous or ()])

        def after_generator_epoch(self, strategy, **kwargs):
            self.check(strategy)

        def after_training_epoch(self, strategy, **kwargs):
            self.check(strategy)

        def check(self, strategy):
            for old, network in zip(self.before, strategy.previous or (), strict=True):
                assert not network.training, "no dropout in its answers"
                for name, value in kept(network).items():
                    assert torch.equal(value, old[name]), name
                    self.checked.add(name)
                assert not any(p.requires_grad for p in network.parameters())

    frozen = Frozen()
    model = growing_mlp()
    model.features.append(nn.BatchNorm1d(5))
    generator = WGANGP(SPEC, epochs=2, batch_size=BATCH, latent_size=3, width=8)
    strategy = learn(scholar(model, frozen, generator=generator), stream([[0, 1], [2, 3], [4, 5]]))
    assert {"generator.1.running_mean", "critic.1.weight", "classifier.classifier.weight"} <= frozen.checked
    assert any(name.startswith("features") and name.endswith("running_mean") for name in frozen.checked)
    assert strategy.previous.generator is not strategy.generator


def test_generator_and_solver_are_trained_one_after_the_other():
    order = []

    class Order(GeneratorPlugin):
        def after_generator_epoch(self, strategy, **kwargs):
            order.append("G")
            assert torch.isfinite(strategy.generator_loss)
            assert strategy.state_dict_within()["learns"], "what is kept in the middle is the generator's middle"

        def after_training_epoch(self, strategy, **kwargs):
            order.append("S")
            state = strategy.state_dict_within()
            assert not state["learns"]
            for part in (part for batch in state["ahead"] for part in batch):
                assert part.untyped_storage().nbytes() == part.nbytes, "nothing is kept of what has been used"

    learn(scholar(growing_mlp(), Order(), epochs=3), stream([[0, 1], [2, 3]]))
    assert "".join(order) == "GGSSSGGSSS"


def middles():
    """A scholar that has learned an experience, and what it keeps after each of its generator's epochs and its own."""
    found = []

    class Keeps(GeneratorPlugin):
        def after_generator_epoch(self, strategy, **kwargs):
            found.append(copy.deepcopy(strategy.state_dict_within()))

        def after_training_epoch(self, strategy, **kwargs):
            found.append(copy.deepcopy(strategy.state_dict_within()))

    strategy = scholar(growing_mlp(), Keeps())
    learn(strategy, stream([[0, 1]]))
    return strategy, found


@pytest.mark.parametrize(("moment", "epochs"), [(0, 1), (1, 0), (2, 0), (3, 0)])
def test_a_generator_goes_on_from_the_middle_of_an_experience(moment, epochs):
    """From between its epochs, or from those of the solver, in which it does not learn again."""
    whole, kept = middles()
    learned = []

    class Counts(GeneratorPlugin):
        def after_generator_epoch(self, strategy, **kwargs):
            learned.append(strategy.generator_loss)

        def before_training_epoch(self, strategy, **kwargs):
            assert not strategy.state_dict_within()["learns"], "what is cut short now goes on here again"

    gone_on = scholar(growing_mlp(), Counts(), generator=vae(seed=5))
    gone_on.load_state_dict_within(kept[moment])
    learn(gone_on, stream([[0, 1]]))
    assert len(learned) == epochs
    assert gone_on.classes_so_far == [0, 1]
    assert torch.equal(gone_on.generator.sample(5), whole.generator.sample(5))


# --- with other things ------------------------------------------------------------------------------------------------


class Replayed(DeepGenerativeReplay):
    """Keeps the minibatch of replay that is in use, and all of them."""

    def _replayed(self):
        self.all_replayed = []
        for batch in super()._replayed():
            self.in_use = batch
            self.all_replayed.append(batch)
            yield batch


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_several_heads_of_any_size_rehearse_every_past_task(labels):
    """The loss by hand, one replayed image at a time, each under the head of its task."""
    tasks_seen = {1: set(), 2: set()}

    losses = Losses(lambda strategy: head_by_head(strategy, labels, tasks_seen))
    strategy = Replayed(generator=vae(), replay_labels=labels, **arguments(several_heads(), losses))
    learn(strategy, stream([[0, 1, 2, 3], [0, 1], [0, 1, 2]], task_incremental=True))
    assert tasks_seen == {1: {0}, 2: {0, 1}}
    assert len(losses.pairs) == 3 * 2 * 4
    for found, hand in losses.pairs:
        assert found == pytest.approx(hand, rel=1e-5)


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_head_that_is_met_again_with_more_classes_rehearses_with_all_of_them(labels):
    """What the present solver takes for a new class, of a replayed image, is as wrong as any other."""
    losses = Losses(lambda strategy: head_by_head(strategy, labels, {1: set(), 2: set()}))
    strategy = Replayed(generator=vae(), replay_labels=labels, **arguments(several_heads(), losses))
    learn(strategy, stream([[0, 1], [2, 3], [4]]))
    assert len(losses.pairs) == 3 * 2 * 4
    for found, hand in losses.pairs:
        assert found == pytest.approx(hand, rel=1e-5)


def test_tasks_are_drawn_alike_and_from_the_generators_own_numbers():
    heads = Heads([Met((), [2]), Met((), [5, 7])], mlp(), torch.device("cpu"))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    drawn, again = (heads.draw(3000, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.rand(1) == expected
    assert torch.equal(drawn, again)
    tasks, counts = drawn.unique(return_counts=True)
    assert tasks.tolist() == [2, 5, 7]
    assert counts.min() > 900


def several_heads():
    return as_multitask(mlp(), "classifier")


def head_by_head(strategy, labels, tasks_seen):
    """Eq. 2, one replayed image at a time."""
    t = strategy.clock.train_exp_counter + 1
    outputs = avalanche_forward(strategy.model, strategy.mb_x, strategy.mb_task_id)
    new = functional.cross_entropy(outputs, strategy.mb_y)
    if t == 1:
        return new
    x, _, tasks = strategy.in_use
    tasks_seen[t - 1] |= set(tasks.tolist())
    old = []
    for image, task in zip(x, tasks.tolist(), strict=True):
        answer = strategy.previous.solver.forward_single_task(image[None], task).squeeze(0)
        output = strategy.model.forward_single_task(image[None], task).squeeze(0)
        probabilities = functional.pad(answer.softmax(dim=0), (0, len(output) - len(answer)))
        old.append(functional.cross_entropy(output, answer.argmax() if labels == "hard" else probabilities))
    return new / t + (1 - 1 / t) * torch.stack(old).mean()


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_replay_goes_through_the_strategys_own_forward(labels):
    class WithFeatures(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x), x

    class FirstOfTwo(DeepGenerativeReplay):
        def forward(self):
            return super().forward()[0]

    learned = []
    for kind, around in ((DeepGenerativeReplay, lambda network: network), (FirstOfTwo, WithFeatures)):
        torch.manual_seed(0)
        network = mlp()
        made = kind(generator=vae(), replay_labels=labels, **arguments(around(network), epochs=1))
        learn(made, stream([[0, 1]] * 2))
        learned.append(network.classifier.weight.detach())
    assert torch.equal(*learned)


class InPlace(DeepGenerativeReplay):
    def _unpack_minibatch(self):
        super()._unpack_minibatch()
        self.mbatch[0].mul_(2)


class OfHalfPrecision(DeepGenerativeReplay):
    def _unpack_minibatch(self):
        self.mbatch = [self.mbatch[0].half(), *self.mbatch[1:]]


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("kind", [InPlace, OfHalfPrecision])
def test_a_strategy_that_changes_inputs_as_it_takes_minibatches_apart_is_refused(kind, labels):
    """Before anything is learned: replay would go to the solver, and to the previous one, as it is."""
    model = mlp()
    before = [p.clone() for p in model.parameters()]
    made = kind(generator=vae(), replay_labels=labels, **arguments(model))
    with pytest.raises(ValueError, match=rf"^{kind.__name__}\._unpack_minibatch changes .* or in forward\(\)"):
        learn(made, stream([[0, 1]]))
    assert all(map(torch.equal, before, model.parameters()))
    assert not made.classes_so_far
    if kind is InPlace:
        learn(kind(generator=vae(), r=1, **arguments(model)), stream([[0, 1]]))  # without replay


def test_one_that_leaves_inputs_alone_learns_and_does_not_notice_that_it_was_asked():
    class Counts(DeepGenerativeReplay):
        taken = 0

        def _unpack_minibatch(self):
            self.taken += 1
            self.drawn = torch.rand(1)
            super()._unpack_minibatch()

        def _before_learning(self, images, labels):
            before = torch.get_rng_state(), dict(vars(self))
            super()._before_learning(images, labels)
            assert torch.equal(torch.get_rng_state(), before[0])
            assert vars(self) == before[1] | {"_answers": self._answers}

    strategy = learn(Counts(generator=vae(), **arguments(mlp(), epochs=1)), stream([[0, 1]] * 2))
    assert strategy.taken == 2 * 4


def test_a_benchmark_without_classes_and_tasks_will_do():
    """Avalanche's plainest: nothing has been added to its experiences."""
    torch.manual_seed(0)
    datasets = [
        make_avalanche_dataset(
            TensorDataset(torch.randn(20, 6), torch.arange(20) % 2, torch.zeros(20, dtype=torch.int64)),
        )
        for _ in range(3)
    ]
    experiences = benchmark_from_datasets(train=datasets).train_stream
    losses = Losses(by_hand("hard"))
    learn(scholar(mlp(), losses, generator=KnownImages(SPEC, epochs=1, batch_size=BATCH)), experiences)
    assert len(losses.pairs) == 3 * 2 * 2
    for found, hand in losses.pairs:
        assert found == pytest.approx(hand, rel=1e-5)
    with pytest.raises(ValueError, match="need experiences that know their classes"):
        learn(scholar(mlp(), r="classes"), experiences)


@pytest.mark.parametrize("plugin", [EWCPlugin(3.0), MASPlugin(3.0)], ids=["ewc", "mas"])
def test_a_penalty_is_added_to_the_solvers_loss_whole(plugin):
    eq_2 = by_hand("hard")
    losses = Losses(lambda strategy: eq_2(strategy) + plugin.penalty(strategy.model))
    learn(scholar(mlp(), plugin, losses, generator=KnownImages(SPEC, 1, BATCH)), stream([[0, 1]] * 3))
    for found, expected in losses.pairs:
        assert found == pytest.approx(expected, rel=1e-5)
    assert plugin.penalty(mlp()) > 0


def test_a_loss_that_is_asked_for_once_more_in_a_step_is_without_replay():
    """As a plugin does, of samples of its own."""

    class Asks(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            assert strategy.criterion() == functional.cross_entropy(strategy.mb_output, strategy.mb_y)

        def before_backward(self, strategy, **kwargs):
            self.after_forward(strategy)
            alone = functional.cross_entropy(strategy.mb_output, strategy.mb_y)
            assert (strategy.loss == alone) == (strategy.previous is None)

    learn(scholar(mlp(), Asks()), stream([[0, 1]] * 2))


def test_a_step_that_was_interrupted_leaves_no_replay_to_evaluation():
    strategy, experiences = learn(scholar(mlp()), stream([[0, 1]])), stream([[0, 1]] * 2)
    strategy.criterion = lambda: 1 / 0  # of a step that has got its outputs
    with pytest.raises(ZeroDivisionError):
        strategy.train(experiences[1])
    del strategy.criterion

    class Compares(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            assert strategy.loss == functional.cross_entropy(strategy.mb_output, strategy.mb_y)

    strategy.plugins.append(Compares())
    strategy.eval(experiences)


def test_distillation_works_on_the_solver():
    plain, combined = (learn(scholar(mlp(), *plugins), stream([[0, 1]] * 3)) for plugins in ([], [LwFPlugin(1.0, 2.0)]))
    assert not torch.equal(plain.model.classifier.weight, combined.model.classifier.weight)
    assert torch.equal(plain.generator.sample(3), combined.generator.sample(3)), "the generator is not the plugin's"


def test_beside_iCaRL_the_loss_on_replay_has_the_old_networks_answers_to_replay():
    """In minibatches of any size: the last of an experience has 4 samples."""
    plugin = ICaRLPlugin(6)

    def expected(strategy):
        new, replay = strategy.mb_x, KnownImages.images
        if strategy.previous is None:
            return plugin.loss(strategy.model(new), strategy.mb_y)
        old = strategy.previous.solver
        loss = plugin.loss(strategy.model(new), strategy.mb_y, old(new))
        replay_loss = plugin.loss(strategy.model(replay), old(replay).argmax(dim=1), old(replay))
        return strategy.new_share * loss + (1 - strategy.new_share) * replay_loss

    losses = Losses(expected)
    experiences = stream([[0, 1], [2, 3], [4, 5]], samples=24)
    learn(scholar(mlp(classes=6), plugin, losses, generator=KnownImages(SPEC, 1, BATCH)), experiences)
    assert len(losses.pairs) == 2 * 3 * 3
    for found, by_equation in losses.pairs:
        assert found == pytest.approx(by_equation, rel=1e-5)
    with pytest.raises(ValueError, match=r"^iCaRL's loss needs classes .* take replay_labels='hard'"):
        learn(scholar(mlp(classes=6), ICaRLPlugin(6), replay_labels="soft"), experiences)


def test_a_perfect_generator_rehearses_every_experience_alike():
    """Experiences of 40, 20 and 80 images, told apart by a value: replay holds each past one to an equal share."""
    experiences = []
    for t, samples in enumerate((40, 20, 80)):
        experience = stream([[0, 1]], samples=samples)[0]
        for x in experience.dataset._flat_data._datasets[0].tensors[0]:
            x.fill_(float(t))
        experiences.append(experience)
    strategy = Replayed(generator=PastImages(SPEC, seed=0), **arguments(mlp(), epochs=40))
    torch.manual_seed(0)
    for t, experience in enumerate(experiences):
        strategy.train(experience)
        if t:
            rehearsed = torch.cat([x[:, 0] for x, *_ in strategy.all_replayed])
            shares = [(rehearsed == past).float().mean().item() for past in range(t)]
            assert shares == pytest.approx([1 / t] * t, abs=0.03)


def test_a_scholar_learns_from_one_of_another_architecture():
    """A wider solver, started from scratch on 2 and 3, knows the 0 and the 1 that only the previous one was shown."""
    entry = protocol.get("split-digits/class")
    digits = make_benchmark(prepared("digits", entry.images), entry.stream, "class", "test", seed=0)
    spec = ImageSpec((1, 8, 8))

    def wider(t):
        assert t == 1
        torch.manual_seed(1)
        model = SimpleMLP(num_classes=2, input_size=64, hidden_size=80, drop_rate=0)
        model.classifier = IncrementalClassifier(80, initial_out_features=2)
        return Scholar(VAE(spec, epochs=5, batch_size=16, seed=1, hidden_sizes=(60,)), model)

    first = SimpleMLP(num_classes=2, input_size=64, hidden_size=40, drop_rate=0)
    first.classifier = IncrementalClassifier(40, initial_out_features=2)
    generator = VAE(spec, epochs=20, batch_size=16, latent_size=10, hidden_sizes=(100,))
    strategy = scholar(first, generator=generator, new_scholar=wider, epochs=5)
    learn(strategy, digits.train_stream[:2])
    assert strategy.model.classifier.classifier.in_features == 80
    assert strategy.generator.hidden_sizes == (60,)
    assert {id(p) for group in strategy.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in strategy.model.parameters()
    }
    strategy.model.eval()
    for experience in digits.test_stream[:2]:
        x, y, _ = next(iter(DataLoader(experience.dataset, 1000, collate_fn=experience.dataset.collate_fn)))
        assert (strategy.model(x).argmax(dim=1) == y).float().mean() > 0.9


def test_a_new_scholar_has_the_old_outputs_a_fresh_optimiser_and_trains():
    """Though it comes with two outputs, in eval mode, and may be the same network as before."""
    outputs = []

    class Beginning(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            outputs.append(strategy.model.classifier.classifier.out_features)
            assert strategy.model.training
            assert not any(strategy.optimizer.state.values())

    def new(t):
        return Scholar(vae(seed=t), (growing_mlp() if t == 1 else strategy.model).eval())

    strategy = scholar(growing_mlp(), Beginning(), new_scholar=new, epochs=1)
    strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=0.1, momentum=0.9)
    learn(strategy, stream([[4, 5], [0, 1], [2, 3]]))
    assert outputs == [6, 6, 6]
    assert any(strategy.optimizer.state.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r must be"),
        ({"r": 1.5}, "r must be"),
        ({"r": "tasks"}, "r must be .* got 'tasks'"),
        ({"replay_labels": "true"}, "replay_labels must be one of"),
        ({"new_scholar": lambda t: None}, "quadratic penalty"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        scholar(mlp(), EWCPlugin(1.0), **options)


def test_generator_and_solver_of_one_seed_have_nothing_in_common():
    """Not their first weights, where the layers are alike, and not the order of the data."""
    torch.manual_seed(4)
    first = nn.Linear(6, 8)
    generator = vae(seed=4)
    assert generator.encoder[0].weight.shape == first.weight.shape
    assert not torch.equal(generator.encoder[0].weight, first.weight)
    solver_order = torch.randperm(30, generator=torch.Generator().manual_seed(4))
    for made in (generator, PastImages(SPEC, seed=4)):
        assert not torch.equal(torch.randperm(30, generator=made.random), solver_order)


# --- from the catalogue -----------------------------------------------------------------------------------------------

OF_EVERY_SCHOLAR = {
    "replay_labels": "soft",
    "generator_epochs": 3,
    "generator_batch_size": 7,
    "generator_learning_rate": 0.02,
    "generator_schedule": "linear",
    "latent_size": 5,
}


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        (
            "dgr",
            {
                "r": 0.25,
                **OF_EVERY_SCHOLAR,
                "architecture": "conv",
                "width": 6,
                "critic_steps": 4,
                "penalty": 3.0,
                "betas": (0.1, 0.8),
            },
        ),
        (
            "dgr-vae",
            {
                "r": "classes",
                **OF_EVERY_SCHOLAR,
                "hidden_sizes": (11, 12),
                "likelihood": "gaussian",
            },
        ),
    ],
)
def test_every_hyperparameter_reaches_the_scholar(strategy, settings):
    entry = catalogue.get(strategy)
    hyperparameters = entry.hyperparameters(**settings)
    not_the_scholars = {"solver_schedule"}  # make_strategy's
    the_scholars = set(entry.hyperparameters.model_fields) - not_the_scholars
    assert hyperparameters.model_fields_set == the_scholars, "all of them, none by default"
    made = entry.build(hyperparameters, {**arguments(mlp()), "images": ImageSpec((1, 8, 8)), "seed": 17})
    assert made.generator.seed == 17
    for name, value in settings.items():
        owner = made if name in ("r", "replay_labels") else made.generator
        assert getattr(owner, name.removeprefix("generator_")) == value, name
