"""Memory replay GANs: each loss against the equation, what is frozen, what is drawn; and the baselines beside them."""

import copy

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn
from torch.utils.data import TensorDataset

from engrams.benchmarks.data.loading import TensorClassificationDataset
from engrams.benchmarks.data.streams import labelled
from engrams.strategies import DeepGenerativeReplay, MeRGAN, catalogue
from engrams.strategies.contract import GANSettings
from engrams.strategies.generator_training import GeneratorPlugin
from engrams.strategies.generators import ACGAN, WGANGP, acgan
from engrams.strategies.generators.ewc_gan import EWCGAN, generator_fisher
from engrams.strategies.judged import GANDeepGenerativeReplay
from engrams.strategies.mergan import (
    BATCHES_AHEAD,
    GANJointTraining,
    JointReplayGAN,
    ReplayAlignmentGAN,
    alignment_loss,
)
from tests.test_acgan import SPEC, gan, images, learn, made, minus_log, one_by_one, same, weights
from tests.test_ewc import quiet

BATCH = 12


def between(kind, *past, new, **kwargs):
    """A GAN in the middle of an experience, no longer as its copy from before is, and its twin."""
    generator = gan(kind, **kwargs)
    for label in past:
        learn(generator, label)
    generator.begin(list(new))
    with torch.no_grad():
        for parameter in generator.generator.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return generator, copy.deepcopy(generator)


def past_terms(twin, past, each, replayed):
    """(E[D(G_t)], E[D(G_{t-1})], E[-log C(c | G_{t-1})], E[-log C(c | G_t)]) of every past class, one after another."""
    terms = []
    for place, label in enumerate(past):
        z, c = replayed.z[place : place + 1], torch.full((1, each), label)
        new = made(twin, z, c)
        (new_score, new_logits), (old_score, old_logits) = (
            one_by_one(twin.critic, x) for x in (new, replayed.images[place])
        )
        terms.append(
            (
                new_score.mean(),
                old_score.mean(),
                minus_log(old_logits, c[0]).mean(),
                minus_log(new_logits, c[0]).mean(),
            )
        )
    return terms


def assert_gradient_is_the_sum(loss, network, expected, of_new, of_past):
    """The loss by hand is of two twins: one has the new classes' terms, one those of the past."""
    gradients = (torch.autograd.grad(expected, part.parameters(), retain_graph=True) for part in (of_new, of_past))
    for mine, new, past in zip(torch.autograd.grad(loss, network.parameters()), *gradients, strict=True):
        assert torch.allclose(mine, new + past, rtol=1e-3, atol=1e-5)


# --- joint training with replay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"past_weight": 0.25}])
def test_jtr_s_critic_loss_has_a_term_for_every_past_class(options):
    generator, twin = between(JointReplayGAN, 0, 1, 2, new=(3,), classifier_weight=0.5, **options)
    weight = options.get("past_weight", 1.0)
    plain = copy.deepcopy(twin)
    plain.replay = None
    x, labels = generator.as_learned(images(12)), torch.full((12,), 3)
    terms = past_terms(twin, (0, 1, 2), BATCH // 3, next(twin.replay))
    expected = plain.critic_loss(x, labels) + weight * sum(new - old + 0.5 * cls for new, old, cls, _ in terms)
    ours = generator.critic_loss(x, labels)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_gradient_is_the_sum(ours, generator.critic, expected, plain.critic, twin.critic)


@pytest.mark.parametrize("options", [{}, {"past_weight": 0.25}])
def test_jtr_s_generator_loss_has_a_term_for_every_past_class(options):
    generator, twin = between(JointReplayGAN, 0, 1, 2, new=(3,), classifier_weight=0.5, **options)
    weight = options.get("past_weight", 1.0)
    plain = copy.deepcopy(twin)
    plain.replay = None
    terms = past_terms(twin, (0, 1, 2), BATCH // 3, next(twin.replay))
    expected = plain.generator_loss() + weight * sum(-new + 0.5 * cls for new, _, _, cls in terms)
    ours = generator.generator_loss()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_gradient_is_the_sum(ours, generator.generator, expected, plain.generator, twin.generator)


# --- replay alignment -------------------------------------------------------------------------------------------------


def test_the_alignment_loss_and_its_gradient_are_the_equation():
    torch.manual_seed(0)
    new, old = torch.randn(3, 4, 1, 8, 8, dtype=torch.double).requires_grad_(), torch.randn(3, 4, 1, 8, 8).double()
    expected, gradient = 0.0, torch.empty_like(old)
    for c in range(3):
        for n in range(4):
            for i in range(8):
                for j in range(8):
                    difference = (new[c, n, 0, i, j] - old[c, n, 0, i, j]).item()
                    expected += 0.5 * difference**2 / 3
                    gradient[c, n, 0, i, j] = difference / 3
    loss = alignment_loss(new, old)
    assert loss.item() == pytest.approx(expected)
    assert torch.allclose(torch.autograd.grad(loss, new)[0], gradient)


@pytest.mark.parametrize("options", [{}, {"ra_lambda": 0.3}])
def test_ra_asks_both_generators_for_the_same_and_its_gradient_is_that_of_the_distance(options):
    generator, twin = between(ReplayAlignmentGAN, 0, 1, new=(2,), **options)
    plain = copy.deepcopy(twin)
    plain.replay = None
    replayed = next(twin.replay)
    distance = 0.5 * sum(
        ((made(plain, replayed.z[place : place + 1], torch.full((1, 6), label)) - replayed.images[place]) ** 2).sum()
        for place, label in enumerate((0, 1))
    )
    expected = plain.generator_loss() + options.get("ra_lambda", 1e-3) * distance / 2
    ours = generator.generator_loss()
    assert distance > 0.1
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4)
    for mine, its in zip(
        torch.autograd.grad(ours, generator.generator.parameters()),
        torch.autograd.grad(expected, plain.generator.parameters()),
        strict=True,
    ):
        assert torch.allclose(mine, its, rtol=1e-3, atol=1e-5)


def test_ra_with_lambda_0_is_fine_tuning_to_the_bit():
    ra, plain = gan(ReplayAlignmentGAN, ra_lambda=0.0), gan(ACGAN)
    for label in (0, 1, 2):
        assert same(weights(learn(ra, label)), weights(learn(plain, label)))
        assert torch.equal(ra.sample(7), plain.sample(7))
    held = gan(ReplayAlignmentGAN, ra_lambda=10.0)
    for label in (0, 1, 2):
        learn(held, label)
    assert not same(weights(held), weights(plain))


def test_ra_s_critic_sees_the_new_class_alone():
    generator, twin = between(ReplayAlignmentGAN, 0, 1, new=(2,))
    twin.replay = None
    x, labels = generator.as_learned(images(12)), torch.full((12,), 2)
    assert torch.equal(generator.critic_loss(x, labels), twin.critic_loss(x, labels))


# --- the replaying generator ------------------------------------------------------------------------------------------

every_kind = pytest.mark.parametrize("kind", [JointReplayGAN, ReplayAlignmentGAN])


@every_kind
def test_the_replaying_generator_gets_no_gradient_and_no_update(kind, monkeypatch):
    generator = learn(gan(kind, steps=5, classes=2), 0)
    copies, real_copy = [], kind.frozen_copy
    monkeypatch.setattr(kind, "frozen_copy", lambda self: copies.append(real_copy(self)) or copies[-1])
    before = weights(generator.generator)
    learn(generator, 1)
    (frozen,) = copies
    assert same(weights(frozen.generator), before), "weights and whatever batch norm might keep"
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert not list(frozen.generator.buffers())
    assert not same(weights(generator.generator), before)
    assert generator.replay is None, "a copy of a copy would keep all of them"


@every_kind
def test_every_past_class_is_drawn_in_the_share_that_is_promised(kind):
    generator, _ = between(kind, 0, 2, 5, new=(1,))
    drawn = [next(generator.replay) for _ in range(2 * BATCHES_AHEAD + 1)]
    for replayed in drawn:
        assert replayed.labels.tolist() == [[label] * (BATCH // 3) for label in (0, 2, 5)]
        assert replayed.images.shape == (3, BATCH // 3, *SPEC.shape)
    assert len({replayed.z.sum().item() for replayed in drawn}) == len(drawn), "the same latents twice"


@every_kind
def test_what_is_replayed_are_the_copy_s_images_of_these_latents(kind):
    generator = learn(learn(gan(kind, classes=3), 0), 1)
    before = copy.deepcopy(generator)
    generator.begin([2])
    next(generator.replay)
    z, labels, x = next(generator.replay)
    assert torch.allclose(x.flatten(0, 1), made(before, z, labels), atol=1e-6)


@pytest.mark.parametrize(("size", "each"), [(30, 15), (1, 1)])
@every_kind
def test_the_share_of_replay_may_be_another(kind, size, each):
    generator, _ = between(kind, 0, 1, new=(2,), replay_batch_size=size)
    assert next(generator.replay).labels.tolist() == [[0] * each, [1] * each]


@every_kind
def test_what_an_interrupted_experience_replayed_is_not_replayed_in_the_next(kind):
    generator, _ = between(kind, 0, new=(1,))
    generator.begin([0])
    assert generator.replay is None


@every_kind
def test_only_the_classes_that_are_wanted_are_replayed(kind):
    generator, _ = between(kind, 0, 1, 2, new=(3,), replayed_classes=(1, 9))
    assert next(generator.replay).labels.unique().tolist() == [1]
    nothing, _ = between(kind, 0, new=(3,), replayed_classes=())
    assert nothing.replay is None


@every_kind
def test_saved_and_loaded_it_goes_on_and_replays_as_if_it_had_never_stopped(kind):
    unbroken, resumed = learn(gan(kind), 0), gan(kind, seed=5)
    resumed.load_state_dict(copy.deepcopy(unbroken.state_dict()))
    assert same(weights(learn(unbroken, 1)), weights(learn(resumed, 1)))


@every_kind
def test_the_first_experience_is_fine_tuning(kind):
    assert same(weights(learn(gan(kind), 0, 1)), weights(learn(gan(ACGAN), 0, 1)))


# --- EWC on a generator -----------------------------------------------------------------------------------------------


def test_the_generator_s_fisher_is_the_sum_of_squares_of_its_jacobian():
    generator = learn(gan(latent_size=2, width=2), 0).generator
    z, labels = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 3, dtype=torch.long)
    expected = {name: torch.zeros_like(p) for name, p in generator.named_parameters()}
    for pixel in generator(z, labels).flatten():
        gradients = torch.autograd.grad(pixel, list(generator.parameters()), retain_graph=True)
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient**2 / 3
    many = 4000
    found = generator_fisher(
        generator, z.expand(many, -1, -1), labels.expand(many, -1), torch.Generator().manual_seed(1)
    )
    for name in expected:  # a mean of 4,000 squares of normals
        assert torch.allclose(found[name], expected[name], rtol=0.15, atol=1e-4 * expected[name].max() + 1e-9), name


def test_the_fisher_of_an_experience_is_of_all_its_classes_alike():
    """A label's own scale and shift matter only where images of that label are measured."""
    generator = learn(gan(EWCGAN, classes=4, ewc_lambda=1.0, fisher_samples=2400), 0, 2)
    for name in ("norms.0.scale", "norms.0.shift"):
        of_class = generator.ewc.importances[name].sum(dim=1)
        assert of_class[1] == of_class[3] == 0, name
        assert 0.2 < of_class[0] / of_class[2] < 5, name
    twin = learn(gan(EWCGAN, classes=4, ewc_lambda=1.0, fisher_samples=24), 0, 2)
    alone = {}
    for label in (0, 2):
        z, labels = twin.latents([label] * 400, 12, torch.Generator().manual_seed(label))
        alone[label] = generator_fisher(twin.generator, z, labels, torch.Generator().manual_seed(7 + label))
    for name, found in generator.ewc.importances.items():
        expected = (alone[0][name] + alone[2][name]) / 2
        torch.testing.assert_close(found.sum(), expected.sum(), rtol=0.25, atol=1e-6)


def test_the_fisher_is_measured_on_as_many_images_as_were_asked_for(monkeypatch):
    measured = []

    def counted(generator, z, labels, random):
        measured.append(labels.flatten().bincount().tolist())
        return generator_fisher(generator, z, labels, random)

    monkeypatch.setattr("engrams.strategies.generators.ewc_gan.generator_fisher", counted)
    for samples in (36, 41, 1):
        learn(gan(EWCGAN, ewc_lambda=1.0, fisher_samples=samples), 0, 1)
    assert measured == [[36, 36], [36, 36], [12, 12]], "in whole batches, at least one"


def test_ewc_s_penalty_is_held_against_the_last_optimum_with_all_fishers():
    generator = gan(EWCGAN, ewc_lambda=5.0, fisher_samples=24)
    learn(generator, 0)
    first = {name: value.clone() for name, value in generator.ewc.importances.items()}
    assert all(torch.equal(generator.ewc.anchors[name], p) for name, p in generator.generator.named_parameters())
    learn(generator, 1)
    assert all((generator.ewc.importances[name][: len(old)] >= old - 1e-7).all() for name, old in first.items())
    generator.begin([2])
    plain = copy.deepcopy(generator)
    with torch.no_grad():
        for p, q in zip(generator.generator.parameters(), plain.generator.parameters(), strict=True):
            p += 0.01
            q += 0.01
    plain.ewc.coefficient = 0.0
    importances = generator.ewc.importances
    expected = plain.generator_loss() + sum(2.5 * importance.sum() * 0.01**2 for importance in importances.values())
    ours = generator.generator_loss()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4)
    gradients = (
        torch.autograd.grad(loss, list(one.generator.parameters()))
        for loss, one in ((ours, generator), (expected, plain))
    )
    for name, mine, without in zip(dict(generator.generator.named_parameters()), *gradients, strict=True):
        held = mine - without
        held[: len(importances[name])] -= 5 * importances[name] * 0.01
        assert held.abs().max() < 1e-4 + 1e-3 * mine.abs().max(), name


def test_ewc_s_importance_follows_the_networks_to_another_place_and_is_its_seeds():
    """Another type stands for another device, which a machine need not have."""
    found = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        expected = torch.random.get_rng_state()
        generator = learn(gan(EWCGAN, ewc_lambda=5.0, fisher_samples=24), 0)
        assert torch.equal(torch.random.get_rng_state(), expected)
        found.append(generator.ewc.importances)
    assert same(*found)
    generator.double().begin([1])
    for kept in (generator.ewc.importances, generator.ewc.anchors):
        assert {value.dtype for value in kept.values()} == {torch.float64}


def test_ewc_with_lambda_0_is_fine_tuning_to_the_bit():
    ewc, plain = gan(EWCGAN, ewc_lambda=0.0, fisher_samples=24), gan(ACGAN)
    for label in (0, 1, 2):
        assert same(weights(learn(ewc, label)), weights(learn(plain, label)))


def test_a_loaded_penalty_is_its_own():
    one, other = (learn(gan(EWCGAN, seed=seed, ewc_lambda=3.0, fisher_samples=24), 0) for seed in (0, 1))
    other.load_state_dict(one.state_dict())
    before = {name: value.clone() for name, value in other.ewc.importances.items()}
    learn(one, 1)
    assert same(before, other.ewc.importances)


def test_a_saved_gan_with_ewc_goes_on_as_if_it_had_never_stopped(tmp_path):
    unbroken, stopped = (learn(gan(EWCGAN, ewc_lambda=3.0, fisher_samples=24), 0) for _ in range(2))
    torch.save(stopped.state_dict(), tmp_path / "gan.pt")
    resumed = gan(EWCGAN, seed=5, ewc_lambda=3.0, fisher_samples=24)
    resumed.load_state_dict(torch.load(tmp_path / "gan.pt", weights_only=True))
    assert same(weights(learn(unbroken, 1)), weights(learn(resumed, 1)))


# --- as Avalanche strategies ------------------------------------------------------------------------------------------


def pictures(*experiences, task_incremental=False):
    """A stream of 8x8 images: class c is black but for its c-th row."""
    datasets = []
    for task, classes in enumerate(experiences):
        y = torch.tensor(classes).repeat(40)
        x = torch.full((len(y), *SPEC.shape), SPEC.low)
        x[torch.arange(len(y)), 0, y] = SPEC.high
        datasets.append(TensorClassificationDataset.from_tensors(x, y, task * task_incremental))
    return labelled(benchmark_from_datasets(train=datasets)).train_stream


class BrightestRow(nn.Module):
    """Takes an image for the class of its brightest row."""

    def forward(self, x):
        return x.mean(dim=(1, 3))


def accuracies(strategy, experiences):
    results = strategy.eval(experiences)
    return [
        value
        for experience in experiences
        for key, value in results.items()
        if key.startswith("Top1_Acc_Exp/eval_phase") and key.endswith(f"Exp{experience.current_experience:03d}")
    ]


def evaluated():
    return EvaluationPlugin(accuracy_metrics(experience=True), loggers=[BaseLogger()])


def test_past_and_new_classes_weigh_the_same_where_several_are_new():
    """The new classes' loss is their mean: each of two weighs 1/2, and so must a past one."""
    generator, twin = between(JointReplayGAN, 0, new=(1, 2))
    plain = copy.deepcopy(twin)
    plain.replay = None
    [(new, old, of_old, of_new)] = past_terms(twin, (0,), BATCH, next(twin.replay))
    x, labels = generator.as_learned(images(12)), torch.tensor([1, 2]).repeat(6)
    assert generator.critic_loss(x, labels).item() == pytest.approx(
        (plain.critic_loss(x, labels) + (new - old + of_old) / 2).item(), rel=1e-4
    )
    [(new, _, _, of_new)] = past_terms(twin, (0,), BATCH, next(twin.replay))
    assert generator.generator_loss().item() == pytest.approx(
        (plain.generator_loss() + (-new + of_new) / 2).item(), rel=1e-4
    )


class Constant(ACGAN):
    """Makes class 0 well, class 1 as class 2 half the time, class 2 never."""

    def of_class(self, label, n):
        x = torch.full((n, *SPEC.shape), SPEC.low)
        rows = {0: torch.zeros(n), 1: 1 + torch.arange(n) % 2, 2: torch.zeros(n)}[label].long()
        x[torch.arange(n), 0, rows] = SPEC.high
        return x


def test_evaluation_is_the_share_of_what_was_asked_for():
    strategy = MeRGAN(
        generator=gan(Constant, steps=1),
        classifier=BrightestRow(),
        images_per_class=100,
        eval_mb_size=30,
        evaluator=evaluated(),
    )
    experiences = pictures([0], [1], [2])
    for experience in experiences:
        strategy.train(experience)
    assert accuracies(strategy, experiences) == [1.0, 0.5, 0.0]
    assert accuracies(strategy, pictures([0, 1, 2])) == [0.5]
    assert strategy.classes_so_far == [0, 1, 2]


def test_evaluation_changes_nothing_about_the_training():
    ends = []
    for judged in (True, False):
        strategy = MeRGAN(generator=gan(JointReplayGAN), classifier=BrightestRow(), images_per_class=9, **silent())
        experiences = pictures([0], [1], [2])
        for experience in experiences:
            strategy.train(experience)
            if judged:
                strategy.eval(experiences)  # of classes that have not been met, too
        ends.append(weights(strategy.generator))
    assert same(*ends)


def silent():
    return {"eval_mb_size": 5, "evaluator": evaluated()}


def test_avalanches_own_evaluator_shows_it(capsys):
    strategy = MeRGAN(generator=gan(), classifier=BrightestRow(), images_per_class=7, eval_mb_size=3)
    experiences = pictures([0], [1])
    strategy.train(experiences[0])
    strategy.eval(experiences)
    assert "Top1_Acc_Exp" in capsys.readouterr().out


def test_the_classifier_is_in_eval_mode():
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 3))
    before = weights(classifier)
    strategy = MeRGAN(generator=gan(), classifier=classifier, images_per_class=50, **silent())
    (experience,) = pictures([0, 1, 2])
    strategy.train(experience)
    assert accuracies(strategy, [experience]) == accuracies(strategy, [experience])
    assert same(weights(classifier), before)


def test_without_a_classifier_there_is_no_evaluation():
    with pytest.raises(ValueError, match="evaluated by a classifier of real images"):
        MeRGAN(generator=gan(), evaluator=evaluated()).eval(pictures([0]))


def test_the_strategy_trains_the_generator_it_is_given_and_calls_the_hooks(monkeypatch):
    monkeypatch.setattr(acgan, "ROUND", 3)
    called = []

    class Hooks(GeneratorPlugin):
        def before_training_exp(self, strategy, **kwargs):
            called.append(("before", strategy.experience.current_experience))

        def after_generator_epoch(self, strategy, **kwargs):
            called.append(("rounds", torch.isfinite(strategy.generator_loss).item()))

        def after_training_exp(self, strategy, **kwargs):
            called.append(("after", strategy.experience.current_experience))

    alone = gan(ReplayAlignmentGAN, steps=5)
    strategy = MeRGAN(generator=gan(ReplayAlignmentGAN, steps=5), plugins=[Hooks()], evaluator=quiet())
    for experience in pictures([0], [1]):
        strategy.train(experience)
        x, y = torch.stack([x for x, *_ in experience.dataset]), torch.tensor(experience.dataset.targets)
        list(alone.learn(x, labels=y))
    assert same(weights(strategy.generator), weights(alone))
    one = [("rounds", True), ("rounds", True)]
    assert called == [("before", 0), *one, ("after", 0), ("before", 1), *one, ("after", 1)]


def test_joint_training_learns_all_classes_at_once():
    strategy = GANJointTraining(generator=gan(), classifier=BrightestRow(), evaluator=evaluated())
    assert strategy.images_per_class == 6400, "as the authors'"
    strategy.train(pictures([0], [1], [2]))
    assert strategy.generator.known == strategy.classes_so_far == [0, 1, 2]
    strategy.train(pictures([3, 4]))
    assert strategy.generator.known == [0, 1, 2, 3, 4], "of an only experience, too"


def test_joint_training_learns_images_as_they_are_in_training():
    learned = []

    class Shown(ACGAN):
        def learn(self, images, replay, r, labels):
            learned.append((images, replay, r))
            yield from ()

    sets = []
    for label in (0, 1):
        tensors = TensorDataset(images(3), torch.full((3,), label))
        tensors.targets = [label] * 3
        darker = {"train": (lambda x: x / 2, None), "eval": (None, None)}
        sets.append(as_classification_dataset(tensors, transform_groups=darker))
    strategy = GANJointTraining(generator=gan(Shown), evaluator=evaluated())
    strategy.train(benchmark_from_datasets(train=sets).train_stream)
    [(shown, replay, r)] = learned
    assert torch.equal(shown, torch.cat([images(3), images(3)]) / 2)
    assert (replay, r) == (None, 1), "replay is the GAN's own"


def test_the_ends_of_the_ranges_are_allowed():
    jtr, plain = gan(JointReplayGAN, past_weight=0, replay_batch_size=1), gan(ACGAN)
    for label in (0, 1):
        assert same(weights(learn(jtr, label).generator), weights(learn(plain, label).generator)), "as fine-tuning"


def test_of_an_unconditional_generator_is_had_what_the_solver_takes_for_the_class():
    torch.manual_seed(0)
    solver = nn.Sequential(BrightestRow())

    class AnyRow(WGANGP):
        def sample(self, n):
            x = torch.full((n, *SPEC.shape), SPEC.low)
            x[torch.arange(n), 0, torch.arange(n) % 3] = SPEC.high
            return x

    strategy = GANDeepGenerativeReplay(
        generator=AnyRow(SPEC, epochs=1),
        classifier=BrightestRow(),
        images_per_class=50,
        model=solver,
        optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.1),
        evaluator=evaluated(),
    )
    strategy.classes_so_far = [0, 1, 2]
    assert accuracies(strategy, pictures([0], [1], [2])) == [1.0, 1.0, 1.0]
    assert strategy.of_class(1, 20)[:, 0, 1].min() == SPEC.high
    assert len(strategy.of_class(7, 20)) == 20, "of a class that it knows nothing of, any image"
    assert len(strategy.of_class(7, 200)) == 200, "and as many as are asked for, whatever was asked for before"


def test_an_unconditional_generator_is_asked_anew_after_every_experience():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    seen = []

    class AtTheEnd(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            seen.append(strategy.of_class(0, 10))

    strategy = GANDeepGenerativeReplay(
        generator=WGANGP(SPEC, epochs=1, batch_size=8, width=8),
        classifier=BrightestRow(),
        images_per_class=10,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        plugins=[AtTheEnd()],
        **silent(),
    )
    first, second = pictures([0], [1])
    strategy.train(first)
    before = strategy.of_class(0, 10)
    assert torch.equal(strategy.of_class(0, 10), before), "the same latents, the same generator"
    strategy.train(second)
    assert not torch.equal(strategy.of_class(0, 10), before)
    assert not torch.equal(seen[1], before), "where Avalanche evaluates within the training, too"


@pytest.mark.parametrize(("images_per_class", "size"), [(20, 7), (21, 7), (3, 7)])
def test_the_number_of_minibatches_is_known_before(images_per_class, size):
    """Avalanche's progress bar asks for it."""
    strategy = MeRGAN(
        generator=gan(classes=3),
        classifier=BrightestRow(),
        images_per_class=images_per_class,
        eval_mb_size=size,
        evaluator=evaluated(),
    )
    (strategy.experience,) = pictures([0, 2])
    strategy.make_eval_dataloader()
    assert len(strategy.dataloader) == len(list(strategy.dataloader)) == 2 * -(-images_per_class // size)


def test_asking_the_solver_for_labels_leaves_it_as_it_was():
    torch.manual_seed(0)
    solver = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 2))
    strategy = GANDeepGenerativeReplay(
        generator=WGANGP(SPEC, epochs=1, batch_size=8, width=8),
        classifier=BrightestRow(),
        images_per_class=10,
        model=solver,
        optimizer=torch.optim.SGD(solver.parameters(), lr=0.1),
        evaluator=evaluated(),
    )
    before = weights(solver.train())
    strategy.of_class(0, 10)
    assert same(weights(solver), before), "its running statistics"


# --- as the memory of a solver ----------------------------------------------------------------------------------------


def memory(generator, classes=4, epochs=3, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes))
    return DeepGenerativeReplay(
        generator=generator,
        replay_labels="asked",
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        train_epochs=epochs,
        eval_mb_size=100,
        evaluator=evaluated(),
        **options,
    )


def test_a_solver_learns_what_its_memory_was_asked_for():
    """The replayed labels are the generator's: the first experience's images come back as class 3, whatever S says."""

    class Liar(ACGAN):
        def sample_labelled(self, n):
            x = torch.full((n, *SPEC.shape), SPEC.low)
            x[:, 0, 0] = SPEC.high
            return x, torch.full((n,), 3)

    strategy = memory(gan(Liar, steps=1), epochs=20)
    first, second = pictures([0], [1])
    strategy.train(first)
    assert accuracies(strategy, [first]) == [1.0]
    strategy.train(second)
    x = torch.stack([x for x, *_ in first.dataset])
    assert (strategy.model(x).argmax(1) == 3).all()


@pytest.mark.parametrize("kind", [JointReplayGAN, ReplayAlignmentGAN])
def test_memory_replay_keeps_old_classes(kind):
    torch.manual_seed(1)
    settings = {"steps": 60, "critic_steps": 3, "width": 16, "learning_rate": 3e-3}
    strategy = memory(gan(kind, **settings, **({"ra_lambda": 0.1} if kind is ReplayAlignmentGAN else {})))
    experiences = pictures([0, 1], [2, 3])
    for experience in experiences:
        strategy.train(experience)
    assert min(accuracies(strategy, experiences)) > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DeepGenerativeReplay(
                generator=WGANGP(SPEC, epochs=1), replay_labels="asked", model=nn.Linear(1, 1), optimizer=None
            ),
            "needs a generator that is conditional",
        ),
        (lambda: memory(gan(), new_scholar=lambda t: None), "one that replays by itself has no past then"),
        (lambda: gan(JointReplayGAN, past_weight=-1.0), "past_weight must be at least 0"),
        (lambda: gan(ReplayAlignmentGAN, ra_lambda=float("nan")), "ra_lambda must be a finite number"),
        (lambda: gan(ReplayAlignmentGAN, replay_batch_size=0), "replay_batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- from the catalogue -----------------------------------------------------------------------------------------------

OWN = {
    "mergan-jtr": {"past_weight": 0.25, "replayed_classes": (1,), "replay_batch_size": 9},
    "mergan-ra": {"ra_lambda": 0.5, "replayed_classes": (1,), "replay_batch_size": 9},
    "gan-joint": {"steps": 11},
    "gan-finetune": {},
    "gan-ewc": {"ewc_lambda": 2.0, "fisher_samples": 13},
}
SETTINGS = {"steps": 7, "batch_size": 5, "latent_size": 3, "width": 6, "learning_rate": 0.02, "smallest_side": 2}
SETTINGS |= {"critic_steps": 4, "penalty": 3.0, "classifier_weight": 0.5, "betas": (0.1, 0.8)}


@pytest.mark.parametrize("name", OWN)
def test_the_gan_is_made_with_everything_that_was_said(name):
    entry = catalogue.get(name)
    h = entry.hyperparameters(**OWN[name])
    for build in filter(None, (entry.build, entry.generate)):
        model = nn.Linear(1, 1)
        template = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1), "criterion": None}
        template |= {"images": SPEC, "seed": 17, "classes": 3, "gan": GANSettings(**SETTINGS), "evaluator": quiet()}
        generator = build(h, template).generator
        for setting, value in {**SETTINGS, **OWN[name], "seed": 17, "classes": 3}.items():
            owner = generator.ewc if setting == "ewc_lambda" else generator
            assert getattr(owner, setting) == value, setting
