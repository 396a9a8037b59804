"""What p(y | x, theta) is: the density whose negative logarithm the network was trained with.

The Fisher information is one of a density, so it has to be the loss's own. Under another one it is wrong by more than a
factor, and with one output the softmax's is 0, since a softmax of one output is 1 whatever the network says.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

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


def with_zeros(y: Tensor, counts: Tensor) -> Tensor:
    """Returns the labels with 0 for those that do not count, whatever they are (-1, 255, NaN)."""
    return y.reshape(counts.shape).masked_fill(~counts, 0) if y.numel() == counts.numel() else y


def _one_by_one(weights: Tensor) -> Tensor:
    """Signals [K, N, ...]: the k-th has the weights at output k of every sample, and 0 elsewhere."""
    return torch.diag_embed(weights.reshape(len(weights), -1)).transpose(0, 1).reshape(-1, *weights.shape)


def _like(y: Tensor, outputs: Tensor) -> Tensor:
    if y.numel() != outputs.numel():
        raise ValueError(f"targets of shape {tuple(y.shape)} do not fit outputs of {_rows(outputs)}")
    return y.reshape(outputs.shape).to(outputs)


def _rows(outputs: Tensor) -> str:
    return "shape [" + ", ".join(["N", *map(str, outputs.shape[1:])]) + "]"
