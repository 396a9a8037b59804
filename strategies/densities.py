"""What p(y | x, theta) is: the density whose negative logarithm the network was trained with.

The Fisher information is one of a density, so it has to be the loss's own. Under another one it is wrong by more than a
factor, and with one output the softmax's is 0, since a softmax of one output is 1 whatever the network says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from engrams.strategies.precision import wide

Likelihood = Literal["categorical", "bernoulli", "bernoulli-probabilities", "gaussian"]


class LogDensity(Protocol):
    """log p(y|x) as a function of the network's outputs f [N, ...], as it gives them; every method works on a batch.

    A *signal* is a vector v_n for each sample, of f_n's shape, that is pulled back through the network: the gradient of
    a function of the outputs with respect to theta is J_n' v_n, with v_n the function's gradient with respect to f_n.
    """

    def refuse(self, outputs: Tensor) -> None:
        """Raises a ValueError if the network's outputs are none of this density."""

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Returns the signal d log p(y_n | x_n) / d f_n; y holds labels that count, see ``answered``."""

    def draw(self, outputs: Tensor) -> Tensor:
        """Returns one y from p(y | x_n) for each n."""

    def expectation(self, outputs: Tensor) -> Tensor:
        """Signals [terms, N, ...] whose squared pull-backs add up to E_y [(d log p(y|x_n) / d theta)^2]."""

    def answered(self, y: Tensor | None) -> Tensor | None:
        """Returns which of the labels count, of y's shape; None: all do."""


class Categorical:
    """p(y|x) = softmax(f)_y, so that d log p(y|x) / d f = e_y - p.

    Outputs that are log-probabilities (of ``nn.NLLLoss``) are their own softmax's logarithm, and the same holds.
    Outputs [N, K, ...] are of one class at every position (a pixel, a word), and p is the product over positions. A
    label that is ``ignore_index`` is none.
    """

    def __init__(self, ignore_index: int):
        self.ignore_index = ignore_index

    def refuse(self, outputs: Tensor) -> None:
        if outputs.dim() < 2 or outputs.shape[1] < 2:
            raise ValueError(
                f"a categorical density needs outputs [N, K] with K >= 2 classes (or [N, K, ...], a class at every "
                f"position); the network gives {_rows(outputs)}. One logit belongs to nn.BCEWithLogitsLoss "
                f"(likelihood='bernoulli')"
            )

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        p = outputs.softmax(1)
        if y.is_floating_point():  # probabilities of the classes: d sum_c y_c log p_c / d f
            y = _like(y, outputs)
            return y - p * y.sum(1, keepdim=True)
        y = fitting(y, outputs).long()
        if ((y < 0) | (y >= p.shape[1])).any():
            raise ValueError(
                f"labels must be classes, 0 to {p.shape[1] - 1} for {p.shape[1]} outputs, or left out by the loss; got "
                f"{y.min().item()} to {y.max().item()}"
            )
        return functional.one_hot(y, p.shape[1]).movedim(-1, 1) - p

    def draw(self, outputs: Tensor) -> Tensor:
        # Outputs that are not finite draw something, and their score says so.
        p = outputs.softmax(1).nan_to_num(1.0).movedim(1, -1)
        return torch.multinomial(p.flatten(0, -2), 1).view(p.shape[:-1])

    def expectation(self, outputs: Tensor) -> Tensor:
        # E_y [(J'(e_y - p))^2] = sum_c (J' sqrt(p_c) (e_c - p))^2, at each position, since they are independent
        p = outputs.softmax(1)
        # A masked unit (a class not met yet) has probability 0 exactly. NaN is not 0, and stays to be noticed.
        classes = (p.transpose(0, 1).flatten(1).amax(1) != 0).nonzero().flatten()
        weights = p[:, classes].transpose(0, 1).sqrt().unsqueeze(2)
        e = functional.one_hot(classes, p.shape[1]).view(-1, 1, p.shape[1], *[1] * (p.dim() - 2))
        signals = weights * (e - p)
        if p.dim() == 2:
            return signals
        return torch.diag_embed(signals.flatten(3)).movedim(-1, 1).reshape(-1, *p.shape)

    def answered(self, y: Tensor | None) -> Tensor | None:
        if not isinstance(y, Tensor) or y.is_floating_point():
            return None
        labelled = y != self.ignore_index
        return None if labelled.all() else labelled


class Bernoulli:
    """p(y|x) = prod_k s_k^y_k (1 - s_k)^(1 - y_k), s = sigmoid(f), so that d log p(y|x) / d f = y - s."""

    def refuse(self, outputs: Tensor) -> None:
        pass

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        return _like(y, outputs) - outputs.sigmoid()

    def draw(self, outputs: Tensor) -> Tensor:
        return torch.bernoulli(outputs.sigmoid().nan_to_num(0.5))

    def expectation(self, outputs: Tensor) -> Tensor:
        # E_y [(J'(y - s))^2] = sum_k (J' sqrt(s_k (1 - s_k)) e_k)^2: the outputs are independent.
        s = outputs.sigmoid()
        return _one_by_one((s * (1 - s)).sqrt())

    def answered(self, y: Tensor | None) -> Tensor | None:
        return None


class BernoulliProbabilities:
    """The same, where the outputs are the probabilities s themselves (``nn.BCELoss``)."""

    def refuse(self, outputs: Tensor) -> None:
        if not ((outputs >= 0) & (outputs <= 1)).all() and outputs.isfinite().all():
            raise ValueError(
                f"binary cross-entropy without logits needs outputs in [0, 1]; the network gives "
                f"{outputs.min().item():.3g} to {outputs.max().item():.3g}"
            )

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self._over((_like(y, outputs) - outputs), outputs * (1 - outputs))

    def draw(self, outputs: Tensor) -> Tensor:
        return torch.bernoulli(outputs.nan_to_num(0.5))

    def expectation(self, outputs: Tensor) -> Tensor:
        variance = outputs * (1 - outputs)
        return _one_by_one(self._over(variance.sqrt(), variance))

    def answered(self, y: Tensor | None) -> Tensor | None:
        return None

    @staticmethod
    def _over(numerator: Tensor, variance: Tensor) -> Tensor:
        # A sigmoid that is 0 or 1 to the last bit has a derivative of 0: the quotient's limit is 0.
        return torch.where(variance == 0, torch.zeros_like(numerator), numerator / variance)


class Gaussian:
    """p(y|x) = N(f, s^2 I), s = noise_std; the loss it belongs to is ||y - f||^2 / (2 s^2)."""

    def __init__(self, noise_std: float):
        self.noise_std = noise_std

    def refuse(self, outputs: Tensor) -> None:
        pass

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (_like(y, outputs) - outputs) / self.noise_std**2

    def draw(self, outputs: Tensor) -> Tensor:
        return outputs + self.noise_std * torch.randn_like(outputs)

    def expectation(self, outputs: Tensor) -> Tensor:
        # E_y [(J'(y - f) / s^2)^2] = sum_k (J' e_k / s)^2: the residuals are independent with variance s^2.
        return _one_by_one(torch.full_like(outputs, 1 / self.noise_std))

    def answered(self, y: Tensor | None) -> Tensor | None:
        return None


def density(likelihood: Likelihood, noise_std: float = 1.0, ignore_index: int = -100) -> LogDensity:
    """Returns the density of that name; ``noise_std`` is the gaussian's, ``ignore_index`` the categorical's."""
    if likelihood == "gaussian":
        return Gaussian(noise_std)
    if likelihood == "bernoulli":
        return Bernoulli()
    return BernoulliProbabilities() if likelihood == "bernoulli-probabilities" else Categorical(ignore_index)


def fitting(y: Tensor, outputs: Tensor) -> Tensor:
    """Returns class indices in the shape of the outputs without their classes; a ValueError if they do not fit."""
    if y.numel() != outputs[:, 0].numel():
        raise ValueError(f"labels of shape {tuple(y.shape)} do not fit outputs of shape {tuple(outputs.shape)}")
    return y.reshape(outputs[:, 0].shape)


def _one_by_one(weights: Tensor) -> Tensor:
    """Signals [K, N, ...]: the k-th has the weights at output k of every sample, and 0 elsewhere."""
    return torch.diag_embed(weights.reshape(len(weights), -1)).transpose(0, 1).reshape(-1, *weights.shape)


def _like(y: Tensor, outputs: Tensor) -> Tensor:
    if y.numel() != outputs.numel():
        raise ValueError(f"targets of shape {tuple(y.shape)} do not fit outputs of {_rows(outputs)}")
    return y.reshape(outputs.shape).to(outputs)


def _rows(outputs: Tensor) -> str:
    return "shape [" + ", ".join(["N", *map(str, outputs.shape[1:])]) + "]"


# --- which density a criterion is of ----------------------------------------------------------------------------------

OF_MODULES: dict[type[nn.Module], Likelihood] = {
    nn.CrossEntropyLoss: "categorical",
    nn.NLLLoss: "categorical",
    nn.BCEWithLogitsLoss: "bernoulli",
    nn.MultiLabelSoftMarginLoss: "bernoulli",
    nn.BCELoss: "bernoulli-probabilities",
    nn.MSELoss: "gaussian",
}
OF_FUNCTIONS: dict[Callable[..., Tensor], Likelihood] = {
    functional.cross_entropy: "categorical",
    functional.nll_loss: "categorical",
    functional.binary_cross_entropy_with_logits: "bernoulli",
    functional.multilabel_soft_margin_loss: "bernoulli",
    functional.binary_cross_entropy: "bernoulli-probabilities",
    functional.mse_loss: "gaussian",
}


def likelihood_of(criterion: object) -> Likelihood | None:
    """Returns the density that a loss of torch, a function or a module, is the negative logarithm of; None of another.

    A subclass that computes its loss itself (a focal loss that is called a cross-entropy) is another.
    """
    if isinstance(criterion, functools.partial):
        return likelihood_of(criterion.func)
    for kind, likelihood in OF_MODULES.items():
        if isinstance(criterion, kind) and type(criterion).forward is kind.forward:
            return likelihood
    return next((name for function, name in OF_FUNCTIONS.items() if criterion is function), None)


PROBED_AT: dict[Likelihood, tuple[float, ...]] = {
    "categorical": (1.0, 1.0, 3.0),
    "bernoulli": (1.0, 1.0, 3.0),
    "bernoulli-probabilities": (1.0, 1.0, 3.0),
    "gaussian": (1.0, 1.0, 1e3),
}
"""How far from 0 the outputs lie at which a loss is compared with a density: a Huber loss is a square near 0 only."""


def likelihood_by_gradient(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> Likelihood | None:
    """Returns the density that a loss is of, whatever it takes for its targets; None if it is of none.

    So a criterion that somebody wrote is known by what it does. Its gradient must be c (m - t), with m the density's
    mean at the outputs, some c > 0, and some targets t (the labels, smoothed ones, the inputs), for all samples alike
    and at all outputs that count: from one to the next it changes as c m does.

    Args:
        loss: the loss of a batch as a function of its outputs.
        outputs: [N, ...]: the network's, for their shape and type, and whether they are log-probabilities.
    """
    for given in _types_of(outputs):
        for likelihood in PROBED_AT:
            try:
                (first, first_mean), *others = _probed(likelihood, loss, given)
                counts = _nonzero(likelihood, *(gradient for gradient, _ in [(first, first_mean), *others]))
                changes = [(gradient - first, (mean - first_mean) * counts) for gradient, mean in others]
                if _alike(changes, given.dtype):
                    return likelihood
            except Exception:  # whatever it raises: it is no loss of these outputs
                continue
    return None


def of_labels(loss: Callable[[Tensor], Tensor], outputs: Tensor, y: Tensor, likelihood: Likelihood) -> bool:
    """Tells whether a loss of that density has the labels for its targets: its gradient is -c times their score."""
    try:
        at, gradient = _gradient(likelihood, loss, outputs, torch.Generator().manual_seed(0))
        counts = _nonzero(likelihood, gradient)
        score = density(likelihood).score(at, with_zeros(y, counts)).masked_fill(~counts, 0)
        return _alike([(gradient, -score.double())], outputs.dtype)
    except Exception:  # whatever it raises: it is no loss of these labels
        return False


def counted(loss: Callable[[Tensor], Tensor], outputs: Tensor, likelihood: Likelihood) -> Tensor | None:
    """Returns which answers a loss of that density counts; None if all: its gradient at random outputs is not 0 there.

    So what a criterion that somebody wrote leaves out (void pixels, targets that are missing) is known by what it does.

    Returns:
        Booleans of the outputs' shape; of a class index, [N, 1, ...], one for all classes.
    """
    for given in _types_of(outputs):
        try:
            _, gradient = _gradient(likelihood, loss, given, torch.Generator().manual_seed(0))
            break
        except Exception:  # whatever it raises: it may be no loss of float32
            if given is outputs:
                raise
    counts = _nonzero(likelihood, gradient)
    return None if counts.all() else counts


def _types_of(outputs: Tensor) -> list[Tensor]:
    """Outputs of half precision in float32 first, whose gradients are not lost in rounding, and then as they are."""
    return [outputs] if wide(outputs) is outputs else [wide(outputs), outputs]


def _nonzero(likelihood: Likelihood, *gradients: Tensor) -> Tensor:
    """Where some of the gradients is not 0; NaN, the mean of no answers, is none."""
    found = torch.stack(gradients).nan_to_num(0).ne(0).any(0)
    return found.any(1, keepdim=True) if likelihood == "categorical" else found


def with_zeros(y: Tensor, counts: Tensor) -> Tensor:
    """Returns the labels with 0 for those that do not count, whatever they are (-1, 255, NaN)."""
    return y.reshape(counts.shape).masked_fill(~counts, 0) if y.numel() == counts.numel() else y


def _probed(
    likelihood: Likelihood, loss: Callable[[Tensor], Tensor], outputs: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the loss's gradient c (m - t) and the density's mean m at random outputs, which both are rid of the
    variance that a gradient by probabilities is divided by."""
    random = torch.Generator().manual_seed(0)
    for scale in PROBED_AT[likelihood]:
        at, gradient = _gradient(likelihood, loss, outputs, random, scale)
        if likelihood == "categorical":
            yield gradient, at.double().softmax(1)
        elif likelihood == "bernoulli":
            yield gradient, at.double().sigmoid()
        elif likelihood == "gaussian":
            yield gradient, at.double()
        else:
            yield gradient * at * (1 - at), at.double()


def _gradient(
    likelihood: Likelihood, loss: Callable[[Tensor], Tensor], outputs: Tensor, random: torch.Generator, scale: float = 1
) -> tuple[Tensor, Tensor]:
    """Random outputs, and the gradient of the loss there."""
    f = scale * torch.randn(outputs.shape, generator=random, dtype=torch.float64)
    at = (0.1 + 0.8 * f.sigmoid() if likelihood == "bernoulli-probabilities" else f).to(outputs).requires_grad_()
    with torch.enable_grad():
        through = at.log_softmax(1) if likelihood == "categorical" and normalised(outputs) else at
        (gradient,) = torch.autograd.grad(loss(through), at)
    return at.detach(), gradient.double()


def normalised(outputs: Tensor) -> bool:
    """Tells whether outputs [N, K, ...] are log-probabilities."""
    return bool(outputs.logsumexp(1).abs().max() < 1e-2)


def _alike(pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> bool:
    """Tells whether every first tensor is the second times one c > 0."""
    tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 3e-2
    found, expected = pairs[0]
    c = (found * expected).sum() / expected.square().sum()
    return bool(c > 0) and all(
        torch.allclose(found, c * expected, rtol=tolerance, atol=tolerance / 10 * found.abs().max().item())
        for found, expected in pairs
    )


def refuse_unnormalised(criterion: str, loss: Callable[[Tensor], Tensor], outputs: Tensor) -> None:
    """Raises a ValueError if a categorical loss takes the outputs for log-probabilities, and they are none.

    Such a loss is linear in the outputs, and of what does not add up to 1 it is no density's. One that normalises by
    itself (a cross-entropy) is the same for the outputs and for their log-softmax.
    """
    at = outputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        (here,), (twice,) = (torch.autograd.grad(loss(factor * at), at) for factor in (1, 2))
    linear = torch.allclose(2 * here, twice, rtol=1e-2, atol=1e-2 * here.abs().max().item())
    with torch.no_grad():
        given, of_logarithms = loss(outputs), loss(outputs.log_softmax(1))
    rounding = 4 * torch.finfo(given.dtype).eps * given.abs().max().item()
    if linear and (given - of_logarithms).abs().max().item() > max(1e-2, rounding):
        total = outputs.double().logsumexp(1).exp().flatten()[0].item()
        raise ValueError(
            f"the criterion ({criterion}) needs log-probabilities; the exponentials of the network's outputs add up to "
            f"{total:.3g}, not 1. End the network with a log-softmax, or take nn.CrossEntropyLoss"
        )


def options_of(criterion: object) -> dict[str, Any]:
    """Returns what a loss of torch was made with, be it a module or a partial of a function."""
    if isinstance(criterion, functools.partial):
        return criterion.keywords
    if isinstance(criterion, nn.Module):
        return {**vars(criterion), **criterion._buffers}
    return {}


def left_out(criterion: object) -> list[str]:
    """Returns what a known loss has besides its density, in words: class weights, label smoothing."""
    options = options_of(criterion)
    said = [name for name in ("weight", "pos_weight") if options.get(name) is not None]
    found = (
        [f"class weights ({', '.join(said)}), which the Fisher leaves out: every class counts alike"] if said else []
    )
    if options.get("reduction") == "sum":
        found.append("a sum over the minibatch: lambda counts as many times less as the minibatch has samples")
    if options.get("label_smoothing"):
        found.append(
            "label smoothing, which the Fisher leaves out: p(y|x) is the softmax, whose exact and sampled Fisher is "
            "the curvature of the smoothed loss, too"
        )
    return found
