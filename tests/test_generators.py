"""Generators: their losses against closed forms and finite differences, and the contract that they share."""

import copy
import math

import pytest
import torch
from torch import nn

from engrams.strategies.generators import VAE, WGANGP, ImageSpec, NoiseImages, PastImages
from engrams.strategies.generators.generator import mixed
from engrams.strategies.generators.vae import negative_elbo
from engrams.strategies.generators.wgan_gp import gradient_penalty, widths_of_maps

SPEC = ImageSpec((1, 8, 8), low=-0.5, high=2.5)
MAKE = {
    "vae": lambda seed=0: VAE(SPEC, epochs=2, batch_size=16, seed=seed, latent_size=4, hidden_sizes=(20,)),
    "vae gaussian": lambda seed=0: VAE(
        SPEC, epochs=2, batch_size=16, seed=seed, latent_size=4, hidden_sizes=(20,), likelihood="gaussian"
    ),
    "wgan-gp mlp": lambda seed=0: WGANGP(SPEC, epochs=2, batch_size=16, seed=seed, latent_size=4, width=16),
    "wgan-gp conv": lambda seed=0: WGANGP(
        SPEC, epochs=2, batch_size=16, seed=seed, architecture="conv", latent_size=4, width=8
    ),
}
every_kind = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def images(n=64):
    generator = torch.Generator().manual_seed(1)
    return SPEC.low + (SPEC.high - SPEC.low) * torch.rand(n, *SPEC.shape, generator=generator)


# --- the contract -----------------------------------------------------------------------------------------------------


@every_kind
def test_samples_have_the_shape_and_the_range_of_the_stream(make):
    generator = make()
    list(generator.learn(images()))
    made = generator.sample(1203)
    assert made.shape == (1203, *SPEC.shape)
    assert made.min() >= SPEC.low
    assert made.max() <= SPEC.high
    assert not made.requires_grad
    assert generator.training
    assert generator.sample(0).shape == (0, *SPEC.shape)


@every_kind
def test_to_sample_changes_nothing_and_no_sample_depends_on_another(make):
    generator = make()
    list(generator.learn(images()))
    generator.train()
    before = {name: value.clone() for name, value in generator.state_dict().items() if isinstance(value, torch.Tensor)}
    random = copy.deepcopy(generator)
    several, first = generator.sample(3), random.sample(1)
    torch.testing.assert_close(several[:1], first)
    for name, value in before.items():
        assert torch.equal(generator.state_dict()[name], value), name


@pytest.mark.parametrize("bound", [torch.tensor([[[-1.0]]], dtype=torch.float64), torch.tensor([[[-1]]])])
def test_bounds_of_another_type_are_of_torchs_own(bound):
    generator = VAE(ImageSpec((1, 8, 8), low=bound, high=-bound), 1, batch_size=4, hidden_sizes=(5,), latent_size=2)
    assert generator.low.dtype == generator.high.dtype == generator.sample(2).dtype == torch.float32


@every_kind
def test_a_pixel_that_is_always_black_or_white_is_learned_so(make):
    """The stream's range and the network's own are taken for each other nowhere."""
    x = torch.full((64, *SPEC.shape), SPEC.low)
    x[:, :, :, 4:] = SPEC.high
    generator = make()
    generator.epochs, generator.critic_steps = 60, 2
    for group in [g for optimizer in generator._optimizers().values() for g in optimizer.param_groups]:
        group["lr"] = 3e-3
    list(generator.learn(x))
    mean = generator.sample(200).mean(dim=(0, 1, 2))
    assert mean[:4].max() < 0.3, mean
    assert mean[4:].min() > 1.7, mean


@every_kind
def test_a_saved_generator_goes_on_as_if_it_had_never_stopped(make, tmp_path):
    unbroken, stopped = make(), make()
    for generator in (unbroken, stopped):
        list(generator.learn(images()))
    torch.save(stopped.state_dict(), tmp_path / "generator.pt")
    resumed = make(seed=5)
    resumed.load_state_dict(torch.load(tmp_path / "generator.pt", weights_only=True))
    for generator in (unbroken, resumed):
        list(generator.learn(images()))
    assert torch.equal(unbroken.sample(10), resumed.sample(10))


@every_kind
def test_it_goes_on_between_two_epochs_as_if_it_had_never_stopped(make):
    unbroken, stopped, resumed = make(), make(), make(seed=5)
    for generator in (unbroken, stopped, resumed):
        generator.epochs = 3
    whole = list(unbroken.learn(images()))
    next(learning := stopped.learn(images()))
    resumed.load_state_dict_within(copy.deepcopy(stopped.state_dict_within()))
    learning.close()
    assert list(resumed.learn(images())) == whole[1:]
    assert torch.equal(resumed.sample(5), unbroken.sample(5))
    assert len(list(resumed.learn(images()))) == 3, "the next experience begins at its beginning"


@every_kind
def test_it_learns_in_training_mode_whatever_it_was_in(make):
    used, fresh = make().eval(), make()
    for generator in (used, fresh):
        assert not any(loss.requires_grad for loss in generator.learn(images()))
    assert torch.equal(used.sample(5), fresh.sample(5))


@every_kind
def test_the_gradients_of_a_step_are_its_own(make):
    """A second step of the same images, numbers and weights has the same."""
    generator, found = make(), []
    for group in [g for optimizer in generator._optimizers().values() for g in optimizer.param_groups]:
        group["lr"] = 0.0
    generator.critic_steps = 1
    for _ in range(2):
        generator.random.manual_seed(3)
        generator.step(generator.as_learned(images(16)))
        found.append([p.grad.clone() for p in generator.parameters()])
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
    assert any(gradient.any() for gradient in found[0])


@every_kind
def test_optimisers_follow_the_networks_to_another_place(make):
    """Another type stands for another device, which a machine need not have."""
    generator = make()
    list(generator.learn(images()))
    generator.double()
    moments = [
        state["exp_avg"]
        for one in vars(generator).values()
        if isinstance(one, torch.optim.Optimizer)
        for state in one.state.values()
    ]
    assert len(moments) == len(list(generator.parameters()))
    assert all(moment.dtype == torch.double for moment in moments)
    assert any(moment.abs().sum() > 0 for moment in moments)


@every_kind
@pytest.mark.parametrize("changed", [lambda x: x + 0.1, lambda x: x * torch.nan], ids=["beyond", "nan"])
def test_images_beyond_the_range_are_refused(make, changed):
    with pytest.raises(ValueError, match=r"must lie between low and high .*got .* for low = -0.5 and high = 2.5"):
        list(make().learn(changed(images())))


@every_kind
def test_no_random_number_is_taken_from_anyone_else(make):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    generator = make()
    list(generator.learn(images()))
    generator.sample(5)
    assert torch.equal(torch.rand(3), expected)


@every_kind
def test_a_frozen_copy_stays_as_it_is_and_draws_other_numbers(make):
    generator = make()
    list(generator.learn(images()))
    frozen = generator.frozen_copy()
    before = copy.deepcopy(frozen.state_dict())
    assert not torch.equal(frozen.sample(10), generator.sample(10))
    list(generator.learn(images(), frozen.sample, 0.5))
    after = frozen.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key != "_extra_state")
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(module.training for module in frozen.modules())


@pytest.mark.parametrize("kind", [PastImages, NoiseImages])
def test_a_stand_in_is_saved_and_loaded(kind, tmp_path):
    unbroken, resumed = kind(SPEC, seed=0), kind(SPEC, seed=5)
    list(unbroken.learn(images()))
    torch.save(unbroken.state_dict(), tmp_path / "generator.pt")
    resumed.load_state_dict(torch.load(tmp_path / "generator.pt", weights_only=True))
    frozen = resumed.frozen_copy()
    assert torch.equal(unbroken.sample(10), resumed.sample(10))
    list(resumed.learn(images() - 5, resumed.sample, 0.5))
    assert frozen.sample(100).min() > -5, "learned after the copy was made"
    assert frozen.sample(0).shape == (0, *SPEC.shape)


@pytest.mark.parametrize("kind", [PastImages, NoiseImages])
def test_a_stand_in_s_seed_decides_what_it_makes_of_two_experiences(kind):
    made = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        generator = kind(SPEC, seed=0)
        for r in (1.0, 0.5):
            list(generator.learn(images() + r, generator.sample, r))
        made.append(generator.sample(20))
    assert torch.equal(*made)


@pytest.mark.parametrize("kind", [PastImages, NoiseImages])
def test_what_stands_in_for_a_generator_learns_what_a_generator_can(kind):
    with pytest.raises(ValueError, match="of shape"):
        list(kind(SPEC, 0).learn(torch.zeros(3, 5)))


@pytest.mark.parametrize("r", [0.0, 1.5, 0.5])
def test_a_share_that_cannot_be_is_refused(r):
    """Below 1 there must be something to replay."""
    with pytest.raises(ValueError, match=r"r must be|replay"):
        list(PastImages(SPEC, 0).learn(images(), None, r))


def test_past_images_that_start_afresh_keep_the_past_they_are_shown():
    fresh = PastImages(ImageSpec((1,)), seed=0)
    list(fresh.learn(torch.ones(100, 1), lambda n: torch.zeros(n, 1), r=0.25))
    assert fresh.sample(20000).mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VAE(SPEC, epochs=0), "epochs must be at least 1"),
        (lambda: VAE(SPEC, epochs=1, latent_size=0), "latent_size must be at least 1"),
        (lambda: VAE(SPEC, epochs=1, hidden_sizes=(10, 0)), r"hidden_sizes\[1\] must be at least 1"),
        (lambda: VAE(SPEC, epochs=1, likelihood="bernouli"), "likelihood must be one of .* got 'bernouli'"),
        (lambda: WGANGP(SPEC, epochs=1, critic_steps=0), "critic_steps must be at least 1"),
        (lambda: WGANGP(SPEC, epochs=1, latent_size=0), "latent_size must be at least 1"),
        (lambda: WGANGP(SPEC, epochs=1, width=0), "width must be at least 1"),
        (lambda: WGANGP(SPEC, epochs=1, architecture="cnn"), "architecture must be one of .* got 'cnn'"),
        (lambda: WGANGP(SPEC, epochs=1, batch_size=1), "batch_size must be at least 2"),
        (lambda: VAE(SPEC, epochs=1, schedule="cosine"), "schedule must be one of .* got 'cosine'"),
        (lambda: WGANGP(ImageSpec((1, 28, 28)), epochs=1, architecture="conv"), "square images with a side of 8, 16"),
        (lambda: VAE(ImageSpec((1, 8, 8), low=1.0, high=1.0), epochs=1), "low must be below high"),
        (lambda: VAE(ImageSpec(784), epochs=1), r"made for an ImageSpec: a tuple .*; got ImageSpec\(shape=784, "),
        (lambda: VAE((1, 8, 8), epochs=1), r"made for an ImageSpec.* got \(1, 8, 8\)"),
        (lambda: VAE(ImageSpec((1, 8, 8), "0", "1"), epochs=1), "numbers or tensors for low and high.* low='0'"),
        (lambda: MAKE["vae"]().sample(-1), "n must be"),
        (lambda: NoiseImages(SPEC, 0).sample(-1), "n must be at least 0; got -1"),
        (lambda: PastImages(SPEC, seed=0).sample(3), "images must have been learned"),
        (lambda: list(MAKE["vae"]().learn(images(), r=0.5)), "1 where there is no replay"),
        (lambda: list(MAKE["vae"]().learn(images(), images, r=0.0)), r"r must be in \(0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- the mixture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [1.0, 0.5, 0.2, 1 / 3])
def test_a_mixture_holds_the_share_that_r_promises(r):
    new = torch.arange(60.0)
    pool, again = (mixed(new, lambda n: torch.full((n,), -1.0), r, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(pool, again), "the numbers are those of the generator that is given"
    assert len(pool) == 60
    chosen = pool[pool >= 0]
    assert len(chosen) == round(60 * r)
    assert len(chosen.unique()) == len(chosen)
    if r < 1:  # in random order
        assert not torch.equal(pool, torch.cat([chosen, torch.full((60 - len(chosen),), -1.0)]))


def test_of_few_images_one_at_least_is_new_and_of_new_ones_alone_nothing_is_replayed():
    random = torch.Generator().manual_seed(0)
    assert (mixed(torch.arange(60.0), lambda n: torch.full((n,), -1.0), 0.001, random) >= 0).sum() == 1
    assert len(mixed(torch.arange(60.0), lambda n: pytest.fail("replayed"), 1.0, random).unique()) == 60


def test_a_perfect_generator_keeps_every_experience_at_the_share_that_r_promises():
    """With r = 1/t the classes of three experiences end at a third each; with a constant r at r (1 - r)^age."""
    for policy, expected in (
        (lambda t: 1 / t, [1 / 3, 1 / 3, 1 / 3]),
        (lambda t: 1 if t == 1 else 0.4, [0.36, 0.24, 0.4]),
    ):
        past, mixtures = PastImages(ImageSpec((1,)), seed=0), []
        for t in (1, 2, 3):
            new = torch.full((60000, 1), float(t))
            mixtures.append(mixed(new, past.sample if t > 1 else None, policy(t), past.random))
            assert list(past.learn(new, past.sample, policy(t))) == []
        for sample in (mixtures[-1], past.sample(60000)):
            shares = torch.stack([(sample == t).float().mean() for t in (1, 2, 3)])
            torch.testing.assert_close(shares, torch.tensor(expected), atol=0.01, rtol=0)


def test_a_perfect_generator_keeps_all_pieces_of_an_experience():
    """Three pieces of the first, of 100, 100 and 200 images, and two of the second, whose share is a quarter."""
    past = PastImages(ImageSpec((1,)), seed=0)
    for value, size in ((1.0, 100), (2.0, 100), (3.0, 200)):
        list(past.learn(torch.full((size, 1), value)))
    previous = past.frozen_copy()
    for value, size in ((4.0, 30), (5.0, 10)):
        list(past.learn(torch.full((size, 1), value), previous.sample, 0.25))
    made = past.sample(60000)
    shares = torch.stack([(made == value).float().mean() for value in (1, 2, 3, 4, 5)])
    expected = torch.tensor([0.75 / 4, 0.75 / 4, 0.75 / 2, 0.25 * 3 / 4, 0.25 / 4])
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)


def test_noise_has_the_images_mean_and_spread_and_nothing_else():
    noise = NoiseImages(SPEC, seed=0)
    x = images(500)
    x[:, :, :4] += 1
    list(noise.learn(x))
    made = noise.sample(2000)
    assert made.mean() == pytest.approx(x.mean().item(), abs=0.02)
    assert made.std() == pytest.approx(x.std().item(), rel=0.02)
    assert made[:, :, :4].mean() == pytest.approx(made[:, :, 4:].mean().item(), abs=0.02)


# --- the losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_negative_elbo_is_that_of_the_distributions(likelihood):
    """Against torch's own distributions and their KL divergence, image by image."""
    generator = torch.Generator().manual_seed(0)
    x, logits = torch.rand(5, 7, generator=generator), torch.randn(5, 7, generator=generator)
    mean, log_variance = torch.randn(2, 5, 3, generator=generator)
    deviation = sum((a - b) ** 2 for a, b in zip(x.flatten(), logits.sigmoid().flatten(), strict=True)).div(35).sqrt()
    expected = []
    for n in range(5):
        p = logits[n].sigmoid()
        if likelihood == "bernoulli":
            log_likelihood = (x[n] * p.log() + (1 - x[n]) * (1 - p).log()).sum()
        else:
            log_likelihood = torch.distributions.Normal(p, deviation).log_prob(x[n]).sum()
        divergence = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean[n], (log_variance[n] / 2).exp()), torch.distributions.Normal(0.0, 1.0)
        )
        expected.append(divergence.sum() - log_likelihood)
    found = negative_elbo(x, logits, mean, log_variance, likelihood)
    torch.testing.assert_close(found, torch.stack(expected).mean())


@pytest.mark.parametrize(("likelihood", "bounded"), [("bernoulli", True), ("gaussian", True), ("gaussian", False)])
def test_a_step_of_the_vae_is_on_the_bound_of_a_draw_from_its_posterior(likelihood, bounded):
    """z is drawn, not the mean: by torch's own distributions, with the numbers that the generator draws next."""
    spec = ImageSpec((6,), 0.0, 1.0) if bounded else ImageSpec((6,), -math.inf, math.inf)
    vae = VAE(spec, 1, 4, 0, latent_size=3, hidden_sizes=(5,), likelihood=likelihood)
    vae.optimizer = torch.optim.SGD(vae.parameters(), lr=1.0)
    twin = copy.deepcopy(vae)
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(3))
    mean, log_variance = twin.encoder(x).chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, log_variance.exp().sqrt())
    z = posterior.loc + posterior.scale * torch.randn(4, 3, generator=twin.random)
    outputs = twin.decoder(z)
    if likelihood == "bernoulli":
        log_likelihood = (x * outputs.sigmoid().log() + (1 - x) * (1 - outputs.sigmoid()).log()).sum()
    else:
        predicted = outputs.sigmoid() if bounded else outputs
        spread = (x - predicted).square().mean().sqrt()
        log_likelihood = torch.distributions.Normal(predicted, spread).log_prob(x).sum()
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = (torch.distributions.kl_divergence(posterior, prior).sum() - log_likelihood) / 4
    before = [p.detach().clone() for p in vae.parameters()]
    loss = vae.step(x)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not loss.requires_grad
    gradients = torch.autograd.grad(expected, twin.parameters())
    for old, new, gradient in zip(before, vae.parameters(), gradients, strict=True):
        torch.testing.assert_close(new.detach(), old - gradient, rtol=1e-3, atol=1e-5)


def test_an_image_learned_by_heart_does_not_make_the_loss_fall_without_end():
    """At most the density of a standard deviation of 1/100."""
    x, nothing = torch.full((3, 7), 0.5), torch.zeros(3, 2)
    found = negative_elbo(x, torch.zeros(3, 7), nothing, nothing, "gaussian")
    narrowest = torch.distributions.Normal(torch.tensor(0.5), torch.tensor(0.01))
    assert found.item() == pytest.approx(-7 * narrowest.log_prob(torch.tensor(0.5)).item(), rel=1e-5)


def test_the_gradient_penalty_is_that_of_finite_differences():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(4, 6, dtype=torch.double)
    h = 1e-5
    with torch.no_grad():
        unit = torch.eye(6).double()
        slopes = torch.stack([(critic(x + h * e) - critic(x - h * e)).squeeze() / (2 * h) for e in unit])
    expected = sum((math.sqrt(sum(s**2 for s in slopes[:, n].tolist())) - 1) ** 2 for n in range(4)) / 4
    assert gradient_penalty(critic, x).item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_penalty_teaches_the_critic():
    """Its gradient by the critic's parameters, against finite differences."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3, dtype=torch.double)
    gradient_penalty(critic, x).backward()
    weight, h = critic[0].weight, 1e-6
    for index in [(0, 0), (2, 1), (3, 2)]:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[index] += sign * h
            values.append(gradient_penalty(critic, x).item())
            with torch.no_grad():
                weight[index] -= sign * h
        assert weight.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4)


def test_a_linear_critics_penalty_has_a_closed_form():
    """D(x) = w'x has the gradient w everywhere: (||w|| - 1)^2."""
    weight = torch.tensor([3.0, 4.0])
    x = torch.randn(6, 2)
    assert gradient_penalty(lambda x: x @ weight, x).item() == pytest.approx(16)
    assert not x.requires_grad, "it is somebody's"


@pytest.mark.parametrize("kind", ["wgan-gp mlp", "wgan-gp conv"])
def test_a_critic_lets_a_fifth_of_what_is_negative_through(kind):
    leaks = [layer for layer in MAKE[kind]().critic.modules() if isinstance(layer, nn.LeakyReLU)]
    assert leaks
    assert all(layer(torch.tensor([-5.0, 2.0])).tolist() == [-1.0, 2.0] for layer in leaks)


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_networks_of_images_in_colour_make_such_images_and_score_each_once(architecture):
    gan = WGANGP(ImageSpec((3, 16, 16)), 1, 4, 0, architecture, latent_size=2, width=6)
    assert gan.critic(gan.sample(5)).shape == (5, 1)
    assert gan.sample(5).shape == (5, 3, 16, 16)
    convolutions = [layer for layer in gan.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    channels = [(layer.in_channels, layer.out_channels) for layer in convolutions]
    assert channels == ([(6, 3), (3, 3), (3, 3), (3, 6)] if architecture == "conv" else [])


@pytest.mark.parametrize(
    ("side", "width", "smallest", "expected"),
    [(32, 128, 4, [128, 64, 32]), (8, 7, 2, [7, 3]), (64, 4, 4, [4, 2, 1, 1]), (8, 6, 4, [6])],
)
def test_channels_halve_with_every_doubling_of_the_side(side, width, smallest, expected):
    assert widths_of_maps(torch.Size((3, side, side)), width, smallest) == expected


def test_the_critics_loss_is_algorithm_1_by_hand():
    """E D(fake) - E D(real) + lambda penalty at points between real and fake, one epsilon an image."""
    gan = MAKE["wgan-gp mlp"]()
    x = images(16) * 2 - 1
    twin = copy.deepcopy(gan)  # with its own copy of the random numbers
    fake = twin.generator(twin.normal(16, 4)).detach()
    epsilon = torch.rand(16, 1, 1, 1, generator=twin.random)
    between = (epsilon * x + (1 - epsilon) * fake).requires_grad_()
    norms = torch.stack(
        [torch.autograd.grad(twin.critic(between)[n].squeeze(), between)[0][n].norm() for n in range(16)]
    )
    expected = twin.critic(fake).mean() - twin.critic(x).mean() + 10 * ((norms - 1) ** 2).mean()
    assert gan.step(x).item() == pytest.approx(expected.item(), rel=1e-5)


def test_both_networks_of_the_gan_learn_with_the_adam_that_was_asked_for():
    """Two steps by hand: the moments decay by the betas that were given."""
    gan = WGANGP(SPEC, 1, 16, 0, latent_size=4, width=16, critic_steps=1, betas=(0.3, 0.8), learning_rate=0.01)
    for _ in range(2):
        gan.step(gan.as_learned(images(16)))
    for network, optimizer in ((gan.generator, gan.generator_optimizer), (gan.critic, gan.critic_optimizer)):
        twin = copy.deepcopy(network)
        by_hand = copy.deepcopy(optimizer.state_dict()["state"])
        for place, (parameter, before) in enumerate(zip(network.parameters(), twin.parameters(), strict=True)):
            gradient = torch.full_like(parameter, 0.5)
            parameter.grad = gradient.clone()
            first, second = by_hand[place]["exp_avg"], by_hand[place]["exp_avg_sq"]
            first, second = 0.3 * first + 0.7 * gradient, 0.8 * second + 0.2 * gradient**2
            step = (first / (1 - 0.3**3)) / ((second / (1 - 0.8**3)).sqrt() + 1e-8)
            before.data -= 0.01 * step
        optimizer.step()
        for parameter, expected in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)


def test_the_generator_takes_a_step_after_every_fifth_of_the_critic():
    gan = MAKE["wgan-gp mlp"]()
    weight = gan.generator[0].weight
    for step in range(1, 11):
        before = weight.detach().clone()
        gan.step(torch.zeros(16, *SPEC.shape))
        assert torch.equal(weight, before) == (step % 5 != 0)


def test_a_minibatch_that_is_left_over_may_be_a_single_image():
    """Batch norm has no statistics of one image."""
    gan = MAKE["wgan-gp mlp"]()
    (loss, _) = gan.learn(images(17))
    assert torch.isfinite(loss)


# --- the learning rate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vae", "wgan-gp mlp"])
def test_a_linear_schedule_falls_to_zero_in_every_experience(kind, monkeypatch):
    generator = MAKE[kind]()
    generator.schedule = "linear"
    rates = []
    step = generator.step
    monkeypatch.setattr(
        generator,
        "step",
        lambda x: rates.append([g["lr"] for o in generator._optimizers().values() for g in o.param_groups]) or step(x),
    )
    for _ in range(2):  # experiences of 2 epochs of 4 minibatches
        rates.clear()
        list(generator.learn(images()))
        assert len(rates) == 8
        for done, of_optimizers in enumerate(rates):
            assert of_optimizers == pytest.approx([generator.learning_rate * (1 - done / 8)] * len(of_optimizers))
