"""Tells which density a criterion is of: torch's by their names, anybody's by their gradient.

It also tells what a criterion leaves out, whether its targets are the labels, and whether it normalises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engrams.strategies.densities import Likelihood, density, with_zeros
from engrams.strategies.precision import wide

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
    """Returns outputs of half precision in float32 first, whose gradients rounding does not lose, then as they are."""
    return [outputs] if wide(outputs) is outputs else [wide(outputs), outputs]


def _nonzero(likelihood: Likelihood, *gradients: Tensor) -> Tensor:
    """Returns where some of the gradients is not 0; NaN, the mean of no answers, is none."""
    found = torch.stack(gradients).nan_to_num(0).ne(0).any(0)
    return found.any(1, keepdim=True) if likelihood == "categorical" else found


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
    """Returns random outputs, and the gradient of the loss there."""
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
