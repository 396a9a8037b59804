"""Importance of each parameter, as a statistic of per-sample gradients.

The diagonal Fisher information is the mean, over samples, of *squared per-sample* gradients of log p(y | x, theta).
Which y is meant makes four estimators (van de Ven 2025, arXiv:2502.11756), and which distribution p is follows from
the loss the network was trained with. Memory aware synapses take the mean of *absolute per-sample* gradients of the
squared L2 norm of the outputs instead (Aljundi et al. 2018, arXiv:1711.09601), and no label.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from engrams.strategies.per_sample_gradients import (
    SAMPLES_AT_ONCE,
    add_convolution,
    add_linear,
    chosen_samples,
    evaluation_mode,
    forward,
    has_short_cut,
    mean_over_minibatches,
    mean_over_samples,
    minibatches,
    recorded,
    short_cut_layers,
    trainable_parameters,
)

Fisher = Literal["exact", "sampled", "empirical", "batched"]
Likelihood = Literal["categorical", "gaussian"]
MASVariant = Literal["global", "local", "batched"]


def diagonal_fisher(
    model: nn.Module,
    dataset: Dataset,
    fisher: Fisher = "exact",
    fisher_samples: int | None = None,
    *,
    likelihood: Likelihood = "categorical",
    noise_std: float = 1.0,
    batch_size: int = 32,
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information matrix of ``model`` on ``dataset``, at the model's present parameters.

    F_i = E_x E_{y ~ p(y|x)} [(d log p(y|x) / d theta_i)^2]  (Kirkpatrick et al. 2017, eq. 3), the model in eval mode.

    Args:
        model: maps a batch x to outputs of shape [N, K]; an Avalanche ``MultiTaskModule`` also gets the task label.
        dataset: yields (x, y) or (x, y, ..., task label), as Avalanche's datasets do. y is read by ``empirical`` and
            ``batched`` only.
        fisher: which y stands in the expectation.
            ``exact``: all of them, weighted by p(y|x): no randomness is left.
            ``sampled``: one y drawn from p(y|x) for each x, by torch's global generator.
            ``empirical``: the dataset's own y.
            ``batched``: the squared gradient of a *mini-batch mean* with the dataset's own y, averaged over
            mini-batches. Not a Fisher estimate (it shrinks as ``batch_size`` grows); it is what many libraries
            compute, and is kept so that the difference can be shown. A mini-batch of several tasks counts as one
            mini-batch a task.
        fisher_samples: how many x, drawn without replacement by torch's global generator; None, or more than there
            are, means all.
        likelihood: what p(y|x) is. ``categorical``: softmax of the K outputs, y a class index. ``gaussian``: normal
            around the K outputs with standard deviation ``noise_std`` in every one, y of shape [N, K].
        noise_std: standard deviation of the gaussian likelihood, > 0.
        batch_size: mini-batch size of ``batched``; the other three do not depend on it.

    Returns:
        Parameter name -> non-negative tensor of the parameter's shape, detached, for every parameter that requires a
        gradient. Parameters that the outputs do not depend on (another task's head) get zeros.

    Raises:
        ValueError: an unknown ``fisher`` or ``likelihood``, a number out of range, or an empty dataset; no labels in
            the dataset where they are read.
    """
    check_fisher_options(fisher, fisher_samples, likelihood, noise_std)
    _refuse_empty(dataset)
    density: LogDensity = Categorical() if likelihood == "categorical" else Gaussian(noise_std)
    indices = chosen_samples(len(dataset), fisher_samples)  # type: ignore[arg-type]

    def signals(outputs: Tensor, y: Tensor | None) -> Tensor:
        if fisher == "exact":
            return density.expectation(outputs)
        if fisher == "sampled":
            return density.score(outputs, density.draw(outputs)).unsqueeze(0)
        if y is None:
            raise ValueError(f"fisher={fisher!r} reads labels; the dataset has none")
        return density.score(outputs, y).unsqueeze(0)

    with evaluation_mode(model):
        if fisher == "batched":
            return mean_over_minibatches(model, dataset, signals, torch.square, batch_size, indices)
        return mean_over_samples(model, dataset, signals, torch.square, indices)


def check_fisher_options(fisher: str, fisher_samples: int | None, likelihood: str, noise_std: float) -> None:
    """Raise a ValueError that names the first option out of its range."""
    if fisher not in get_args(Fisher):
        raise ValueError(f"fisher must be one of {', '.join(get_args(Fisher))}; got {fisher!r}")
    if likelihood not in get_args(Likelihood):
        raise ValueError(f"likelihood must be one of {', '.join(get_args(Likelihood))}; got {likelihood!r}")
    if fisher_samples is not None and fisher_samples < 1:
        raise ValueError(f"fisher_samples must be at least 1, or None for all; got {fisher_samples}")
    if not noise_std > 0:
        raise ValueError(f"noise_std must be greater than 0; got {noise_std}")


def mas_importance(
    model: nn.Module, dataset: Dataset, variant: MASVariant = "global", *, batch_size: int = 32
) -> dict[str, Tensor]:
    """How much each parameter matters to the outputs of ``model`` on ``dataset``; labels are never read.

    Omega_ij = (1/N) sum_k | d ||F(x_k; theta)||_2^2 / d theta_ij |  (Aljundi et al. 2018, eqs. 2, 3 and section 4.1),
    the model in eval mode.

    Args:
        model: maps a batch x to outputs of shape [N, K]; an Avalanche ``MultiTaskModule`` also gets the task label.
        dataset: yields (x, y), (x, y, ..., task label) as Avalanche's datasets do, or x alone.
        variant: ``global``: as above. ``local``: the Hebbian form (section 4.2), layer by layer the mean product of
            activations, Omega_ij = (1/N) sum_k |f_i(x_k)| |f_j(x_k)|, where f_i is the layer's input (1 for a bias) and
            f_j its output after the ReLU, or the output itself in the last layer. (Behind a ReLU activations are not
            negative; images and outputs may be, and importance may not.) A convolution's products are summed over the
            positions at which it uses a weight, within a sample and before the absolute value is taken. Every layer but
            the last that runs is taken to be followed by a ReLU; one that is called as a function cannot be seen, nor
            that there is none. ``batched``:
            the absolute gradient of a *mini-batch mean*, averaged over mini-batches. It shrinks as ``batch_size``
            grows, since gradients of different samples cancel; it is what many libraries compute, and is kept so that
            the difference can be shown.
        batch_size: mini-batch size of ``batched``; the other two do not depend on it.

    Returns:
        Parameter name -> non-negative tensor of the parameter's shape, detached, for every parameter that requires a
        gradient. Parameters that the outputs do not depend on (another task's head) get zeros.

    Raises:
        ValueError: an unknown ``variant`` or an empty dataset; for ``local``, a layer that is not linear,
            convolutional, a ReLU or without weights of its own (pooling, dropout, flattening), named in the message.
    """
    check_mas_variant(variant)
    _refuse_empty(dataset)

    def signals(outputs: Tensor, y: Tensor | None) -> Tensor:
        return (2 * outputs).unsqueeze(0)  # d ||f||^2 / d f

    with evaluation_mode(model):
        if variant == "local":
            return _mean_product_of_activations(model, dataset)
        if variant == "batched":
            return mean_over_minibatches(model, dataset, signals, torch.abs, batch_size)
        return mean_over_samples(model, dataset, signals, torch.abs)


def check_mas_variant(variant: str) -> None:
    """Raise a ValueError if there is no such variant."""
    if variant not in get_args(MASVariant):
        raise ValueError(f"variant must be one of {', '.join(get_args(MASVariant))}; got {variant!r}")


def _refuse_empty(dataset: Dataset) -> None:
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("an importance needs at least one sample; the dataset is empty")


# --- what p(y | x, theta) is ------------------------------------------------------------------------------------------


class LogDensity(Protocol):
    """log p(y|x) as a function of the network's outputs f [N, K]; every method works on a whole batch.

    A *signal* is a vector v_n for each sample, [N, K], that is pulled back through the network: the gradient of a
    function of the outputs with respect to theta is J_n' v_n, with v_n the function's gradient with respect to f_n.
    """

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The signal d log p(y_n | x_n) / d f_n."""

    def draw(self, outputs: Tensor) -> Tensor:
        """One y from p(y | x_n) for each n."""

    def expectation(self, outputs: Tensor) -> Tensor:
        """Signals [terms, N, K] whose squared pull-backs add up to E_y [(d log p(y|x_n) / d theta)^2]."""


class Categorical:
    """p(y|x) = softmax(f)_y, so that d log p(y|x) / d f = e_y - p."""

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        return functional.one_hot(y, outputs.shape[1]) - outputs.softmax(1)

    def draw(self, outputs: Tensor) -> Tensor:
        return torch.multinomial(outputs.softmax(1), 1).squeeze(1)

    def expectation(self, outputs: Tensor) -> Tensor:
        # E_y [(J'(e_y - p))^2] = sum_c (J' sqrt(p_c) (e_c - p))^2
        p = outputs.softmax(1)
        classes = (p.amax(0) > 0).nonzero().flatten()  # a masked unit (a class not met yet) has probability 0 exactly
        weights = p[:, classes].T.sqrt().unsqueeze(2)
        return weights * (functional.one_hot(classes, p.shape[1]).unsqueeze(1) - p)


class Gaussian:
    """p(y|x) = N(f, s^2 I), s = noise_std; the loss it belongs to is ||y - f||^2 / (2 s^2)."""

    def __init__(self, noise_std: float):
        self.noise_std = noise_std

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (y - outputs) / self.noise_std**2

    def draw(self, outputs: Tensor) -> Tensor:
        return outputs + self.noise_std * torch.randn_like(outputs)

    def expectation(self, outputs: Tensor) -> Tensor:
        # E_y [(J'(y - f) / s^2)^2] = sum_k (J' e_k / s)^2: the residuals are independent with variance s^2.
        identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        return (identity / self.noise_std).unsqueeze(1).expand(-1, *outputs.shape)


# --- MAS, layer by layer ----------------------------------------------------------------------------------------------

WITHOUT_WEIGHTS = (
    nn.Sequential,  # an empty one: Avalanche leaves it where a head was
    nn.ReLU,
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)


def _mean_product_of_activations(model: nn.Module, dataset: Dataset) -> dict[str, Tensor]:
    """The local variant: each layer's own signal is its activation, in place of what is propagated back to it."""
    for name, module in model.named_modules():
        if next(module.children(), None) is None and not isinstance(module, (nn.Linear, nn.Conv2d, *WITHOUT_WEIGHTS)):
            raise ValueError(
                f"variant='local' is for linear and convolutional layers with ReLU; {name!r} is a "
                f"{type(module).__name__}: use variant='global'"
            )
        if isinstance(module, nn.Linear | nn.Conv2d) and not has_short_cut(module):
            raise ValueError(
                f"variant='local' is for plain layers; {name!r} is a {type(module).__name__} with groups, "
                f"reparametrised weights, or padding that is named or not of zeros: use variant='global'"
            )
    every: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    count = 0
    probed: set[int] = set()  # by task, since another task may run other layers
    for x, _, task in minibatches(model, dataset, SAMPLES_AT_ONCE):
        if task not in probed and short_cut_layers(model, x, task) is None:
            raise ValueError("variant='local' needs layers that run once a sample, on weights that are theirs alone")
        probed.add(task)
        with recorded(every) as calls, torch.enable_grad():
            outputs = forward(model, x, task)
        *hidden, last = calls
        activations = {name: calls[name][0][1].detach().relu() for name in hidden}
        # The last layer's output, but for units that are masked because their class has not been met.
        (activations[last],) = torch.autograd.grad(outputs, calls[last][0][1], outputs.detach())
        for name, f in activations.items():
            layer, inputs = every[name], calls[name][0][0]
            if isinstance(layer, nn.Conv2d):
                add_convolution(sums, name, layer, inputs, f, torch.abs)
            else:
                add_linear(sums, name, inputs.abs(), f.abs())
        count += len(x)
    return {name: total / count for name, total in sums.items()}
