"""The conditional GAN: its losses image by image, its batch norm class by class, and what it keeps."""

import copy
from itertools import repeat

import pytest
import torch
from torch import nn
from torch.nn import functional

from engrams.strategies.generators import ACGAN, ImageSpec, acgan
from engrams.strategies.generators.acgan import ConditionalBatchNorm, ConditionalNetwork, Passes

SPEC = ImageSpec((1, 8, 8), low=-0.5, high=2.5)


def gan(kind=ACGAN, seed=0, **kwargs):
    settings = {"steps": 3, "batch_size": 12, "latent_size": 4, "width": 8, "critic_steps": 2}
    return kind(SPEC, seed=seed, **(settings | kwargs))


def images(n=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return SPEC.low + (SPEC.high - SPEC.low) * torch.rand(n, *SPEC.shape, generator=generator)


def learn(generator, *classes, n=40):
    """One experience of these classes."""
    x = images(n * len(classes), seed=classes[0] + 1)
    list(generator.learn(x, labels=torch.tensor(classes).repeat(n)))
    return generator


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items() if name != "_extra_state"}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- batch norm -------------------------------------------------------------------------------------------------------


def random_norm(classes):
    torch.manual_seed(0)
    norm = ConditionalBatchNorm(3, classes)
    with torch.no_grad():
        norm.scale.normal_()
        norm.shift.normal_()
    return norm


def test_batch_norm_begins_as_torchs():
    x, labels = torch.randn(2, 5, 3, 4, 4), torch.arange(10).view(2, 5) % 2
    made = ConditionalBatchNorm(3, 2)(x, labels)
    for batch, expected in zip(made, x, strict=True):
        torch.testing.assert_close(batch, nn.BatchNorm2d(3)(expected))


def test_batch_norm_grows_by_classes_that_neither_scale_nor_shift():
    norm = random_norm(classes=2)
    before = weights(norm)
    norm.grow(5)
    for name, value in (("scale", 1.0), ("shift", 0.0)):
        table = getattr(norm, name)
        assert table.shape == (5, 3)
        assert torch.equal(table[:2], before[name])
        assert (table[2:] == value).all()


def test_conditional_batch_norm_is_a_loop_over_batches_and_classes():
    norm = random_norm(classes=4)
    x = torch.randn(2, 6, 3, 5, 5) * 3 + 1
    labels = torch.tensor([[0, 1, 3, 3, 1, 0], [2, 2, 2, 2, 2, 2]])
    expected = torch.empty_like(x)
    for batch in range(2):
        plain = functional.batch_norm(x[batch], None, None, training=True)
        for label in range(4):
            of_label = labels[batch] == label
            expected[batch, of_label] = (
                plain[of_label] * norm.scale[label].view(3, 1, 1) + norm.shift[label].view(3, 1, 1)
            ).detach()
    assert torch.allclose(norm(x, labels), expected, atol=1e-5)
    constant = norm(torch.full_like(x, 7.0), labels)
    assert torch.allclose(constant, norm.shift[labels][..., None, None].expand_as(x), atol=1e-3)


def test_batches_that_go_through_together_are_as_if_each_went_alone():
    torch.manual_seed(0)
    network = ConditionalNetwork(torch.Size(SPEC.shape), 4, 8, smallest_side=4, classes=3)
    z, labels = torch.randn(3, 5, 4), torch.tensor([0, 1, 2])[:, None].expand(-1, 5)
    together = network(z, labels)
    alone = torch.cat([network(z[i : i + 1], labels[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-6)


# --- the losses -------------------------------------------------------------------------------------------------------


def one_by_one(critic, x):
    """Scores and logits of images, each put through alone."""
    pairs = [critic(image[None]) for image in x]
    return torch.cat([score for score, _ in pairs]), torch.cat([logits for _, logits in pairs])


def made(generator, z, labels):
    """The generator's images of one-label batches."""
    return torch.cat([generator.generator(z[i : i + 1], labels[i : i + 1])[0] for i in range(len(z))])


def minus_log(logits, labels):
    return torch.stack([-row.softmax(0)[label].log() for row, label in zip(logits, labels.tolist(), strict=True)])


def critic_loss_by_hand(generator, x, labels):
    """Equation and random numbers as documented: one z an image, class after class, then one epsilon an image."""
    each = len(x) // len(generator.learning)
    z, c = generator.latents(generator.learning, each)
    fake = made(generator, z, c).detach()
    real_score, real_logits = one_by_one(generator.critic, x)
    fake_score, _ = one_by_one(generator.critic, fake)
    epsilon = torch.rand(len(fake), 1, 1, 1, generator=generator.random)
    slopes = []
    for real, fake_image, e in zip(x, fake, epsilon, strict=False):
        between = (e * real + (1 - e) * fake_image).requires_grad_()
        (gradient,) = torch.autograd.grad(generator.critic(between[None])[0].sum(), between, create_graph=True)
        slopes.append((gradient.square().sum().sqrt() - 1) ** 2)
    return (
        fake_score.mean()
        - real_score.mean()
        + generator.penalty * torch.stack(slopes).mean()
        + generator.classifier_weight * minus_log(real_logits, labels).mean()
    )


def began(generator, *classes):
    """In the middle of an experience, with a copy that will draw the same numbers."""
    generator.begin(list(classes))
    return generator, copy.deepcopy(generator)


@pytest.mark.parametrize("classes", [(1,), (0, 2)])
def test_the_critic_s_loss_is_the_equation_and_its_gradient_too(classes):
    generator, twin = began(learn(gan(penalty=7.0, classifier_weight=0.5), 0), *classes)
    x = generator.as_learned(images(12))
    labels = torch.tensor(classes).repeat(12 // len(classes))
    ours, by_hand = generator.critic_loss(x, labels), critic_loss_by_hand(twin, x, labels)
    assert ours.item() == pytest.approx(by_hand.item(), rel=1e-4)
    for mine, its in zip(
        torch.autograd.grad(ours, generator.critic.parameters()),
        torch.autograd.grad(by_hand, twin.critic.parameters()),
        strict=True,
    ):
        assert torch.allclose(mine, its, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("classes", [(1,), (0, 2)])
def test_the_generator_s_loss_is_the_equation(classes):
    generator, twin = began(learn(gan(classifier_weight=0.5), 0), *classes)
    z, c = twin.latents(list(classes), 12 // len(classes))
    scores, logits = one_by_one(twin.critic, made(twin, z, c))
    expected = -scores.mean() + 0.5 * minus_log(logits, c.flatten()).mean()
    assert generator.generator_loss().item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_generator_s_step_leaves_the_critic_alone_and_the_other_way_round(monkeypatch):
    generator = gan()
    generator.begin([0])
    batches = generator.minibatches(generator.as_learned(images()), torch.zeros(40, dtype=torch.long))
    monkeypatch.setattr(generator, "critic_steps", 1)
    seen = []
    monkeypatch.setattr(
        generator.critic_optimizer,
        "step",
        lambda: seen.append([p.grad is None for p in generator.generator.parameters()]),
    )
    before = weights(generator.critic)
    generator.step(batches)
    assert all(seen[0]), "the critic's loss reached the generator"
    assert same(weights(generator.critic), before)


def test_the_gradients_of_a_step_are_its_own():
    """A second step of the same images, numbers and weights has the same."""
    generator, found = gan(learning_rate=0.0, critic_steps=2), []
    generator.begin([0])
    batches = repeat((generator.as_learned(images(12)), torch.zeros(12, dtype=torch.long)))
    for _ in range(2):
        generator.random.manual_seed(3)
        assert not generator.step(batches).requires_grad
        found.append([p.grad.clone() for p in generator.parameters()])
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
    assert any(gradient.any() for gradient in found[0])


# --- classes ----------------------------------------------------------------------------------------------------------


def test_new_classes_change_nothing_about_those_that_there_are():
    generator = learn(gan(), 0, 1)
    before = copy.deepcopy(generator)
    generator.grow(5)
    for one in (generator, before):
        one.random.manual_seed(3)
    assert torch.equal(generator.of_class(1, 30), before.of_class(1, 30))
    x = generator.as_learned(images())
    (score, logits), (old_score, old_logits) = generator.critic(x), before.critic(x)
    assert torch.equal(score, old_score)
    assert score.shape == (40,)
    torch.testing.assert_close(logits[:, :2], old_logits)  # a wider product may be summed in another order
    assert logits.shape == (40, 5)


def test_room_that_there_is_is_not_made_again():
    generator = gan(classes=3)
    before, random = generator.critic.classifier, generator.random.get_state()
    for classes in (2, 3):
        generator.grow(classes)
    assert generator.critic.classifier is before
    assert torch.equal(generator.random.get_state(), random), "no number is drawn for it"


def grown(seed):
    """The critic's weights of a class that came later."""
    generator = gan(seed=seed, width=2, latent_size=1)
    generator.grow(2)
    return tuple(generator.critic.classifier.weight[1].tolist())


def test_what_a_new_class_begins_with_is_its_gans_seeds():
    found = [grown(seed) for seed in range(40)]
    assert len(set(found)) == 40
    torch.manual_seed(1000)
    assert grown(0) == found[0], "whatever torch's global numbers are"


def test_what_is_replayed_is_drawn_from_numbers_of_its_own():
    generator = gan()
    learned, replayed = (
        set(torch.rand(200, generator=one).tolist()) for one in (generator.random, generator.replay_random)
    )
    assert len(learned & replayed) < 5


def test_it_learns_to_make_what_it_is_asked_for():
    """Class 0 is black on the left, class 1 on the right."""
    x = torch.full((400, *SPEC.shape), float(SPEC.low))
    x[:200, :, :, 4:] = SPEC.high
    x[200:, :, :, :4] = SPEC.high
    generator = gan(steps=200, critic_steps=3, width=16, learning_rate=3e-3)
    list(generator.learn(x, labels=torch.arange(2).repeat_interleave(200)))
    for label in (0, 1):
        mean = generator.of_class(label, 100).mean(dim=(0, 1, 2))
        black, white = (mean[:4], mean[4:]) if label == 0 else (mean[4:], mean[:4])
        assert black.max() < 0.5 < 1.5 < white.min(), (label, mean)


def test_labelled_samples_are_of_the_classes_learned_in_equal_parts():
    generator = learn(learn(gan(classes=6), 4), 1)
    x, labels = generator.sample_labelled(3000)
    assert x.shape == (3000, *SPEC.shape)
    counts = labels.bincount(minlength=6)
    assert counts[[0, 2, 3, 5]].sum() == 0
    assert counts[[1, 4]].min() > 1350
    # An image carries the label that it was asked for with.
    twin, original = copy.deepcopy(generator), generator
    twin.random, original.random = (torch.Generator().manual_seed(3) for _ in range(2))
    twin.of_class = None
    made_alike, y = twin.sample_labelled(50)
    drawn = torch.randint(2, (50,), generator=original.random)
    assert torch.equal(y, torch.tensor([1, 4])[drawn])
    for label in (1, 4):
        assert torch.equal(made_alike[y == label], original.of_class(label, int((y == label).sum())))


# --- the contract -----------------------------------------------------------------------------------------------------


def test_samples_have_the_shape_and_the_range_of_the_stream():
    generator = learn(gan(), 0)
    for x in (generator.sample(1203), generator.of_class(0, 1203)):
        assert x.shape == (1203, *SPEC.shape)
        assert x.min() >= SPEC.low
        assert x.max() <= SPEC.high
        assert not x.requires_grad
    assert generator.of_class(0, 0).shape == generator.sample(0).shape == (0, *SPEC.shape)
    x, labels = generator.sample_labelled(0)
    assert (x.shape, labels.shape) == ((0, *SPEC.shape), (0,))
    assert not generator.sample_labelled(3)[0].requires_grad


def test_a_saved_gan_goes_on_as_if_it_had_never_stopped(tmp_path):
    unbroken, stopped = learn(gan(), 0, 1), learn(gan(), 0, 1)
    torch.save(stopped.state_dict(), tmp_path / "gan.pt")
    resumed = gan(seed=5)
    resumed.load_state_dict(torch.load(tmp_path / "gan.pt", weights_only=True))
    for generator in (unbroken, resumed):
        learn(generator, 3)
    assert torch.equal(unbroken.sample(10), resumed.sample(10))
    assert same(weights(unbroken), weights(resumed))


def test_it_goes_on_between_two_rounds_as_if_it_had_never_stopped(monkeypatch):
    monkeypatch.setattr(acgan, "ROUND", 2)
    unbroken, stopped, resumed = gan(steps=5), gan(steps=5), gan(steps=5, seed=5)
    x, labels = images(), torch.arange(40) % 2
    whole = list(unbroken.learn(x, labels=labels))
    next(learning := stopped.learn(x, labels=labels))
    resumed.load_state_dict_within(copy.deepcopy(stopped.state_dict_within()))
    learning.close()
    assert list(resumed.learn(x, labels=labels)) == whole[1:]
    assert resumed.done == unbroken.done == 5
    assert torch.equal(resumed.sample(5), unbroken.sample(5))
    assert len(list(resumed.learn(x, labels=labels))) == 3, "the next experience begins at its beginning"


def test_after_every_round_it_tells_the_mean_loss_of_its_steps(monkeypatch):
    monkeypatch.setattr(acgan, "ROUND", 2)
    generator, losses = gan(steps=5), iter(torch.arange(5.0))
    monkeypatch.setattr(generator, "step", lambda batches: next(losses))
    assert list(generator.learn(images(), labels=torch.zeros(40, dtype=torch.long))) == [0.5, 2.5, 4.0]


def test_a_state_is_loaded_into_a_gan_that_has_learned_something_else(tmp_path):
    saved, other = learn(gan(), 0, 1), learn(gan(seed=5), 0)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(learn(saved, 2).sample(10), learn(other, 2).sample(10))
    with pytest.raises(ValueError, match="a state of 1 classes cannot be loaded into a GAN of 3"):
        saved.load_state_dict(learn(gan(), 0).state_dict())


def test_weights_begin_as_in_the_authors_code():
    """Standard deviation sqrt(4 / (fan_in + fan_out)), the stride's square taken off the thinned side; biases zero."""
    generator = ACGAN(ImageSpec((1, 32, 32)), steps=1, classes=10)
    for weight, fans in (
        (generator.critic.features[2].weight, 25 * (32 + 64 / 4)),
        (generator.critic.features[4].weight, 25 * (64 + 128 / 4)),
        (generator.generator.convolutions[0].weight, 25 * (64 + 128 / 4)),
        (generator.generator.linear.weight, 2 * (128 + 2048)),
    ):
        assert weight.std().item() == pytest.approx((4 / fans) ** 0.5, rel=0.02)
        assert weight.abs().max() <= (3 * 4 / fans) ** 0.5
    generator.grow(40)
    weight = generator.critic.classifier.weight
    assert weight[10:].std().item() == pytest.approx((2 / (2048 + 40)) ** 0.5, rel=0.02), "of what came later"
    assert all(not p.any() for name, p in generator.named_parameters() if name.endswith("bias"))


def test_no_random_number_is_taken_from_anyone_else():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    learn(gan(), 0, 1).sample(5)
    assert torch.equal(torch.rand(3), expected)


def test_every_experience_begins_with_fresh_optimisers():
    steps = []

    class Watched(ACGAN):
        def end(self):
            for optimizer in (self.critic_optimizer, self.generator_optimizer):
                steps.append({int(state["step"]) for state in optimizer.state.values()})
                [group] = optimizer.param_groups
                assert (group["lr"], group["betas"]) == (0.01, (0.3, 0.8))
            super().end()

    learn(learn(gan(Watched, learning_rate=0.01, betas=(0.3, 0.8)), 0), 1)
    assert steps == [{6}, {3}] * 2, "2 of the critic for each of 3 of the generator"


def test_a_minibatch_may_have_one_image_of_each_class():
    assert learn(gan(batch_size=2), 0, 1).known == [0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gan(steps=0), "steps must be at least 1"),
        (lambda: gan(critic_steps=0), "critic_steps must be at least 1"),
        (lambda: gan(classes=0), "classes must be at least 1"),
        (lambda: gan(batch_size=0), "batch_size must be at least 1"),
        (lambda: ACGAN(ImageSpec((1, 28, 28)), steps=1), "square images with a side of 8, 16"),
        (lambda: gan(smallest_side=8), "square images with a side of 16, 32, 64, "),
        (lambda: list(gan().learn(images())), "images with their labels"),
        (lambda: learn(gan(batch_size=2), 0, 1, 2), "batch_size of 2 is too small for 3 classes at once"),
        (lambda: learn(gan(), 0).of_class(1, 3), "the class below 1; got 3 and 1"),
        (lambda: gan().sample_labelled(3), "images must have been learned"),
        (lambda: learn(gan(), 0).sample_labelled(-1), "n must be at least 0; got -1"),
        (lambda: learn(gan(), 0).of_class(0, -1), "n must be at least 0, .* got -1 and 0"),
        (lambda: gan().sample(3), "images must have been learned"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_minibatches_are_full_and_a_pass_takes_no_sample_twice():
    x = torch.arange(10.0)
    passes = Passes(x, x.long(), 4, torch.Generator().manual_seed(0))
    drawn = [next(passes) for _ in range(6)]
    assert [len(images) for images, _ in drawn] == [4] * 6
    for first in range(0, 6, 2):
        of_a_pass = torch.cat([images for images, _ in drawn[first : first + 2]])
        assert len(of_a_pass.unique()) == 8, "two are left over, and left out"
    assert all(torch.equal(images.long(), labels) for images, labels in drawn)
    assert not torch.equal(drawn[0][0], drawn[2][0]), "in a new order"


@pytest.mark.parametrize(
    "name", ["steps", "classes", "latent_size", "width", "smallest_side", "critic_steps", "batch_size"]
)
def test_what_must_be_at_least_one_is_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"{name} must be at least 1; got 0"):
        gan(**{name: 0})
