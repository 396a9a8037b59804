"""What a generator is promised of its images, and what it does with them: shape, type, bounds, seed, replay."""

import copy
import inspect
import math

import pytest
import torch
from avalanche.models import IncrementalClassifier
from torch import nn

from engrams.strategies import EWCPlugin, MASPlugin, MeRGAN, SIPlugin
from engrams.strategies.avalanche.streaming_lda import InputStreamingLDA
from engrams.strategies.dark_replay import DERPlugin
from engrams.strategies.generators import ACGAN, VAE, WGANGP, ClassGaussians, ImageSpec, NoiseImages, PastImages
from engrams.strategies.generators.acgan import ConditionalBatchNorm
from engrams.strategies.generators.ewc_gan import EWCGAN
from engrams.strategies.generators.generator import Generator, TrainedGenerator
from engrams.strategies.heads import MASKED
from engrams.strategies.importance import diagonal_fisher, mas_importance
from engrams.strategies.mergan import JointReplayGAN, ReplayAlignmentGAN

IMAGES = ImageSpec((1, 8, 8), low=-0.5, high=2.5)
BOUNDED = ImageSpec((5,), low=-3.0, high=7.0)
FEATURES = ImageSpec((5,), low=-math.inf, high=math.inf)
RECTIFIED = ImageSpec((5,), low=0.0, high=math.inf)

OF_IMAGES = {
    "vae": lambda seed=0: VAE(IMAGES, 1, 16, seed, latent_size=4, hidden_sizes=(20,)),
    "wgan-gp mlp": lambda seed=0: WGANGP(IMAGES, 1, 16, seed, latent_size=4, width=16),
    "wgan-gp conv": lambda seed=0: WGANGP(IMAGES, 1, 16, seed, "conv", latent_size=4, width=8),
    "acgan": lambda seed=0: ACGAN(IMAGES, 2, 16, seed, latent_size=4, width=8, critic_steps=1),
    "past": lambda seed=0: PastImages(IMAGES, seed),
    "noise": lambda seed=0: NoiseImages(IMAGES, seed),
}
WITH_NETWORKS = ("vae", "wgan-gp mlp", "wgan-gp conv", "acgan")
OF_VECTORS = {
    "vae": lambda spec: VAE(
        spec, 40, 16, 0, latent_size=4, hidden_sizes=(20,), learning_rate=1e-2, likelihood="gaussian"
    ),
    "wgan-gp": lambda spec: WGANGP(spec, 80, 32, 0, latent_size=4, width=32, learning_rate=1e-3, critic_steps=2),
    "past": lambda spec: PastImages(spec, 0),
    "noise": lambda spec: NoiseImages(spec, 0),
}


def images(n=48, shape=IMAGES.shape, dtype=torch.float32):
    random = torch.Generator().manual_seed(1)
    return (IMAGES.low + (IMAGES.high - IMAGES.low) * torch.rand(n, *shape, generator=random)).to(dtype)


def learn(generator, x, *args):
    list(generator.learn(x, *args, labels=torch.arange(len(x)) % 2))
    return generator


# --- shape and type ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OF_IMAGES)
@pytest.mark.parametrize("shape", [(64,), (8, 8), (3, 8, 8), (1, 8, 9), (1, 1, 8, 8)])
def test_another_shape_is_said_beside_the_one_promised(kind, shape):
    generator = OF_IMAGES[kind]()
    before = copy.deepcopy(generator.state_dict())
    with pytest.raises(ValueError, match=r"promises images of shape \(1, 8, 8\); the stream's have shape") as error:
        learn(generator, images(shape=shape))
    assert str(tuple(shape)) in str(error.value)
    assert all(
        torch.equal(value, before[name]) for name, value in generator.state_dict().items() if torch.is_tensor(value)
    )


@pytest.mark.parametrize("kind", WITH_NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8, torch.int64])
def test_another_type_is_said_beside_the_one_promised(kind, dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"networks are float32 and the stream's images {name}"):
        learn(OF_IMAGES[kind](), images().clamp(0, 1).to(dtype))


@pytest.mark.parametrize("kind", OF_IMAGES)
def test_a_generator_of_doubles_learns_and_makes_doubles(kind):
    generator = learn(OF_IMAGES[kind]().double(), images(dtype=torch.float64))
    previous = generator.frozen_copy()
    assert previous.sample(3).dtype == torch.float64
    learn(generator, images(dtype=torch.float64), previous.sample, 0.5)
    made = generator.sample(7)
    assert made.dtype == generator.sample(0).dtype == torch.float64
    assert made.isfinite().all()
    if generator.conditional:
        assert generator.sample_labelled(3)[0].dtype == generator.of_class(0, 0).dtype == torch.float64


def test_where_doubles_are_torchs_default_they_are_the_generators():
    torch.set_default_dtype(torch.float64)
    try:
        assert learn(OF_IMAGES["vae"](), images(dtype=torch.float64)).sample(2).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_in_single_precision_or_double_the_same_is_learned():
    """The numbers drawn are the same, so what is made differs by rounding alone."""
    single, double = OF_IMAGES["vae"](), OF_IMAGES["vae"]().double()
    for generator, dtype in ((single, torch.float32), (double, torch.float64)):
        generator.epochs = 3
        learn(generator, images(dtype=dtype))
    torch.testing.assert_close(single.sample(20).double(), double.sample(20), rtol=1e-3, atol=1e-3)


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_NETWORKS)
def test_a_thousandth_of_the_range_is_forgiven_and_no_more(kind):
    x = images()
    x[0, 0, 0, 0] = IMAGES.high + 0.0009 * (IMAGES.high - IMAGES.low)
    x[0, 0, 0, 1] = IMAGES.low - 0.0009 * (IMAGES.high - IMAGES.low)
    learn(OF_IMAGES[kind](), x)
    for value in (IMAGES.high + 0.0011 * 3, IMAGES.low - 0.0011 * 3):
        x = images()
        x[1, 0, 0, 0] = value
        with pytest.raises(ValueError, match="must lie between low and high"):
            learn(OF_IMAGES[kind](), x)


def vectors(n=400):
    """Values of very different size, and one that never changes."""
    random = torch.Generator().manual_seed(2)
    x = torch.randn(n, 5, generator=random) * torch.tensor([1.0, 20.0, 0.1, 3.0, 0.0])
    return x + torch.tensor([0.0, 100.0, -1.0, 5.0, 4.0])


@pytest.mark.parametrize(("kind", "black"), [("vae", 0.0), ("wgan-gp mlp", -1.0), ("acgan", -1.0)])
def test_networks_see_images_in_their_papers_range(kind, black):
    bounds = torch.tensor([IMAGES.low, IMAGES.high])[:, None, None, None].expand(-1, *IMAGES.shape)
    generator = OF_IMAGES[kind]()
    seen = generator.as_learned(bounds)
    assert seen.amin(dim=(1, 2, 3)).tolist() == seen.amax(dim=(1, 2, 3)).tolist() == [black, 1.0]
    torch.testing.assert_close(generator.as_given(seen), bounds)


@pytest.mark.parametrize("kind", OF_VECTORS)
def test_vectors_between_bounds_are_learned_and_made(kind):
    x = vectors().clamp(BOUNDED.low, BOUNDED.high)
    made = learn(OF_VECTORS[kind](BOUNDED), x).sample(2000)
    assert made.shape == (2000, 5)
    assert made.isfinite().all()
    if kind != "noise":
        assert made.min() >= BOUNDED.low
        assert made.max() <= BOUNDED.high
        assert (made.mean(dim=0) - x.mean(dim=0)).abs().max() < 0.15 * 10


@pytest.mark.parametrize("kind", ["vae", "wgan-gp", "past"])
def test_vectors_without_bounds_come_back_in_their_own_size(kind):
    x = vectors()
    made = learn(OF_VECTORS[kind](FEATURES), x).sample(4000)
    size = torch.tensor([1.0, 20.0, 0.1, 3.0, 1.0])
    assert ((made.mean(dim=0) - x.mean(dim=0)) / size).abs().max() < 0.7, made.mean(dim=0)
    spread = made.std(dim=0)[:4] / x.std(dim=0)[:4]
    assert spread.max() < 1.6, spread
    assert (made[:, 1] > 100).float().mean() == pytest.approx(0.5, abs=0.3)


def test_noise_without_bounds_has_the_mean_and_spread_of_all_values():
    x = vectors()
    made = learn(OF_VECTORS["noise"](FEATURES), x).sample(4000)
    assert made.mean().item() == pytest.approx(x.mean().item(), abs=1)
    assert made.std().item() == pytest.approx(x.std().item(), rel=0.05)


@pytest.mark.parametrize("kind", ["vae", "wgan-gp"])
def test_what_has_no_bounds_is_standardised_by_what_was_learned_first(kind):
    generator = OF_VECTORS[kind](FEATURES)
    generator.epochs = 1
    assert generator.sample(3).isfinite().all(), "before anything was learned"
    assert generator.sample(3).std() > 0
    x = vectors()
    learn(generator, x)
    standardised = generator.as_learned(x)
    mean = sum(x) / len(x)
    deviation = (sum((row - mean) ** 2 for row in x) / len(x)).sqrt()
    for value in range(4):
        torch.testing.assert_close(
            standardised[:, value], (x[:, value] - mean[value]) / deviation[value], rtol=1e-4, atol=1e-4
        )
    assert (standardised[:, 4].abs() < 1e-4).all(), "a constant one by its mean alone"
    torch.testing.assert_close(generator.as_given(standardised), x)
    learn(generator, 1.5 * x + 1)
    torch.testing.assert_close(generator.as_learned(x), standardised)
    loaded = OF_VECTORS[kind](FEATURES)
    loaded.load_state_dict(generator.state_dict())
    assert torch.equal(loaded.sample(5), generator.sample(5))


def test_a_value_is_constant_where_it_differs_by_rounding_alone():
    random = torch.Generator().manual_seed(2)
    x = torch.zeros(400, 5)
    x[:, 0], x[:, 1], x[:, 2] = 0.0, -4.0, 12345.678 + 1e-3 * (torch.arange(400) % 2)
    x[:, 3] = 1e-3 + 5e-4 * torch.randn(400, generator=random)
    x[:, 4] = 1e6 + 5 * torch.randn(400, generator=random)
    generator = VAE(FEATURES, 1, 200, 0, 4, (20,), likelihood="gaussian")
    learn(generator, x)
    constant = generator.as_learned(x + 3)[:, :3] - 3
    assert constant.abs().max() < 0.01, "by its mean alone"
    torch.testing.assert_close(generator.as_learned(x)[:, 3:].std(dim=0), torch.ones(2), rtol=0.01, atol=0)


def test_what_lies_on_the_only_bound_is_not_beyond_it():
    x = -vectors().clamp_min(0)
    assert (x == 0).any()
    learn(VAE(ImageSpec((5,), -math.inf, 0.0), 1, 200, 0, 4, (20,), likelihood="gaussian"), x)


@pytest.mark.parametrize("kind", ["vae", "wgan-gp"])
def test_one_bound_is_kept_to(kind):
    x = vectors().clamp_min(0)
    generator = OF_VECTORS[kind](RECTIFIED)
    generator.epochs = 5
    made = learn(generator, x).sample(1000)
    assert made.min() == 0, "of so many some would lie below"
    assert made.max() > 50
    with pytest.raises(ValueError, match="must lie between low and high"):
        learn(generator, x - 0.01)
    with pytest.raises(ValueError, match="must lie between low and high"):
        learn(generator, x * math.inf)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VAE(FEATURES, epochs=1), "likelihood='bernoulli' needs images between two finite bounds"),
        (lambda: VAE(RECTIFIED, epochs=1), "take likelihood='gaussian'"),
        (lambda: ACGAN(ImageSpec((1, 8, 8), 0.0, math.inf), steps=1), "the conditional GAN makes images between two"),
        (lambda: ACGAN(BOUNDED, steps=1), r"square images with a side of 8, 16, 32, ...; got \(5,\)"),
        (lambda: WGANGP(BOUNDED, epochs=1, architecture="conv"), "convolutions need square images"),
        (lambda: WGANGP(ImageSpec((2, 3, 8, 8)), epochs=1, architecture="conv"), "convolutions need square images"),
        (lambda: WGANGP(ImageSpec((1, 16, 8)), epochs=1, architecture="conv"), "convolutions need square images"),
        (lambda: WGANGP(ImageSpec((1, 4, 4)), epochs=1, architecture="conv"), "convolutions need square images"),
        (lambda: PastImages(ImageSpec((3, 0))), "images must have pixels"),
        (lambda: VAE(ImageSpec((2,), torch.tensor([0.0, 1.0]), 1.0), epochs=1), "low must be below high"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_not_conditional_cannot_be_asked_for_classes():
    with pytest.raises(TypeError, match="VAE is not conditional"):
        OF_IMAGES["vae"]().sample_labelled(3)


# --- the seed ---------------------------------------------------------------------------------------------------------

UNSEEDED = {
    "vae": lambda **seed: VAE(IMAGES, 1, latent_size=4, hidden_sizes=(20,), **seed),
    "wgan-gp": lambda **seed: WGANGP(IMAGES, 1, latent_size=4, width=16, **seed),
    "acgan": lambda **seed: ACGAN(IMAGES, 2, latent_size=4, width=8, **seed),
    "past": lambda **seed: PastImages(IMAGES, **seed),
    "noise": lambda **seed: NoiseImages(IMAGES, **seed),
}


@pytest.mark.parametrize("make", UNSEEDED.values(), ids=UNSEEDED)
def test_without_a_seed_torchs_global_one_decides(make):
    def made(global_seed, **seed):
        torch.manual_seed(global_seed)
        return learn(make(**seed), images()).sample(5)

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
    torch.manual_seed(1)
    first, second = learn(make(), images()), learn(make(), images())
    assert not torch.equal(first.sample(5), second.sample(5)), "two of one script"
    assert torch.equal(made(1, seed=3), made(2, seed=3))
    assert not torch.equal(made(1, seed=3), made(1, seed=4))


@pytest.mark.parametrize("make", UNSEEDED.values(), ids=UNSEEDED)
def test_with_a_seed_nothing_is_taken_from_torchs_global_numbers(make):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make(seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_seeds_that_torchs_global_one_decides_are_of_very_many():
    torch.manual_seed(0)
    assert len({NoiseImages(IMAGES).seed for _ in range(200)}) == 200


def test_every_seed_begins_with_weights_of_its_own():
    def weight(seed):
        return VAE(BOUNDED, 1, seed=seed, latent_size=1, hidden_sizes=(2,)).encoder[0].weight

    found = [weight(seed) for seed in range(40)]
    assert len({tuple(one.flatten().tolist()) for one in found}) == 40
    torch.manual_seed(1000)
    assert torch.equal(weight(0), found[0]), "whatever torch's global numbers are"


# --- replay -----------------------------------------------------------------------------------------------------------


class Seen(TrainedGenerator):
    """Keeps the minibatches that it is shown; its networks would have black at -1."""

    black = -1.0

    def build(self):
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = []

    def step(self, x):
        self.seen.append(x)
        return x.mean()

    def make(self, n):
        return torch.zeros(n, *self.shape)


def test_replay_is_learned_in_the_range_of_the_networks():
    """New images are black and replayed ones white, as the stream has them: -1 and 1 in the networks' own range."""
    generator = Seen(IMAGES, epochs=1, batch_size=10, seed=0, learning_rate=0.1)
    white = torch.full((1, *IMAGES.shape), IMAGES.high)
    [loss] = generator.learn(torch.full((100, *IMAGES.shape), IMAGES.low), lambda n: white.expand(n, -1, -1, -1), 0.25)
    values = torch.cat(generator.seen).mean(dim=(1, 2, 3))
    assert values[:, None].sub(torch.tensor([-1.0, 1.0])).abs().amin(dim=1).max() < 1e-6, values
    assert (values > 0).sum() == 75
    assert loss.item() == pytest.approx(0.5, abs=1e-6)
    torch.testing.assert_close(generator.sample(2), torch.full((2, *IMAGES.shape), 1.0))


def test_minibatches_are_of_the_size_that_was_set_and_epochs_as_many():
    generator = Seen(IMAGES, epochs=3, batch_size=10, seed=0, learning_rate=0.1)
    assert len(list(generator.learn(images(25)))) == 3
    assert [len(x) for x in generator.seen] == [10, 10, 5] * 3
    one, other = (torch.cat(generator.seen[first : first + 3]) for first in (0, 3))
    assert not torch.equal(one, other), "in another order every time"
    assert {x.sum().item() for x in one} == {x.sum().item() for x in other}


def test_noise_is_standard_normal_before_anything_was_learned():
    made = NoiseImages(IMAGES, 0).sample(500)
    assert made.mean().item() == pytest.approx(0, abs=0.03)
    assert made.std().item() == pytest.approx(1, abs=0.03)


# --- what is not said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Gulrajani et al. 2017, algorithm 1: lambda, n_critic, learning rate and Adam's betas; the rest is ours.
        (
            WGANGP,
            {"penalty": 10.0, "critic_steps": 5, "learning_rate": 1e-4, "betas": (0.0, 0.9), "batch_size": 64}
            | {"latent_size": 100, "width": 512, "architecture": "mlp", "schedule": "constant"},
        ),
        # Wu et al. 2018, public code.
        (
            ACGAN,
            {"penalty": 10.0, "critic_steps": 5, "learning_rate": 1e-4, "betas": (0.0, 0.9), "batch_size": 64}
            | {"latent_size": 128, "width": 128, "smallest_side": 4, "classifier_weight": 1.0, "classes": 1},
        ),
        (
            VAE,
            {"batch_size": 128, "latent_size": 100, "hidden_sizes": (400, 400), "learning_rate": 1e-3}
            | {"likelihood": "bernoulli", "schedule": "constant"},
        ),
        (JointReplayGAN, {"past_weight": 1.0, "replayed_classes": None, "replay_batch_size": None}),
        (ReplayAlignmentGAN, {"ra_lambda": 1e-3}),
        (EWCGAN, {"fisher_samples": 6400}),
        (MeRGAN, {"images_per_class": 6400, "classifier": None}),
        # Huszár 2017: nothing is forgotten; a standard normal target.
        (
            EWCPlugin,
            {
                "consolidation": "corrected",
                "fisher": "exact",
                "gamma": 1.0,
                "noise_std": 1.0,
                "penalty_step": "gradient",
                "weigh_by_samples": False,
                "normalise": False,
                "exclude": (),
                "consolidate_every": None,
            },
        ),
        (MASPlugin, {"variant": "global", "penalty_step": "gradient", "exclude": (), "consolidate_every": None}),
        (SIPlugin, {"xi": 0.1, "clamped": "sum", "penalty_step": "gradient", "exclude": (), "consolidate_every": None}),
        (DERPlugin, {"beta": 0.0, "batch_size_mem": None}),
        (ClassGaussians, {"covariance": "shared", "shrinkage": 0.1, "rank": None}),
        (ConditionalBatchNorm, {"eps": nn.BatchNorm2d(1).eps}),
        (InputStreamingLDA, {"streaming_covariance": True}),
    ],
)
def test_what_is_not_said_is_the_papers(kind, expected):
    signatures = [inspect.signature(one.__dict__["__init__"]) for one in kind.__mro__ if "__init__" in one.__dict__]
    defaults = {name: p.default for signature in reversed(signatures) for name, p in signature.parameters.items()}
    assert {name: defaults[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (
            diagonal_fisher,
            {"fisher": "exact", "fisher_samples": None, "likelihood": "categorical", "noise_std": 1.0, "counted": None}
            | {"ignore_index": nn.CrossEntropyLoss().ignore_index},
        ),
        (mas_importance, {"variant": "global"}),
    ],
)
def test_what_an_importance_is_where_nothing_is_said(measure, expected):
    loading = {"batch_size": 32, "samples_at_once": None, "num_workers": 0}
    parameters = inspect.signature(measure).parameters.values()
    assert {one.name: one.default for one in parameters if one.default is not one.empty} == expected | loading


def test_what_is_no_answer_is_masked_as_avalanches_heads_mask_it():
    assert IncrementalClassifier(1).mask_value == MASKED


def test_a_critics_slope_is_that_of_the_public_code():
    slopes = [one.negative_slope for one in WGANGP(IMAGES, 1, seed=0).critic.modules() if isinstance(one, nn.LeakyReLU)]
    assert slopes
    assert set(slopes) == {0.2}


def test_images_are_sampled_without_gradients():
    for generator in (VAE(IMAGES, 1, seed=0), WGANGP(IMAGES, 1, seed=0)):
        assert not generator.sample(3).requires_grad


@pytest.mark.parametrize("kind", [Generator, VAE, WGANGP, ACGAN, PastImages, NoiseImages, ClassGaussians])
def test_every_generator_learns_new_images_alone_where_nothing_is_said(kind):
    parameters = inspect.signature(kind.learn).parameters.values()
    assert {one.name: one.default for one in parameters if one.default is not one.empty} == {
        "replay": None,
        "r": 1.0,
        "labels": None,
    }


def test_images_lie_between_0_and_1_where_nothing_is_said():
    assert (ImageSpec((1,)).low, ImageSpec((1,)).high) == (0.0, 1.0)
