"""What a solver's outputs answer, as labels that its criterion takes: a class, or how probable each one is."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional

from engrams.strategies.choices import ReplayLabels
from engrams.strategies.criteria import likelihood_by_gradient, likelihood_of, normalised
from engrams.strategies.densities import Likelihood
from engrams.strategies.heads import MASKED
from engrams.strategies.undisturbed import same_random_numbers

Criterion = Callable[[Tensor, Tensor], Tensor]
SAMPLES = 3
"""On which a criterion is asked what it takes."""


class Answers:
    """Reads outputs [N, K], one for each class, or those of a binary classifier with one logit, [N, 1] or [N].

    ``hard`` labels are classes, int64 [N]. ``soft`` ones are what the criterion says that outputs mean: the softmax of
    a cross-entropy's, [N, K], the sigmoid of a binary one's, [N, K] or [N], and the outputs themselves of squared error
    (and of a binary cross-entropy of probabilities), [N, K].
    """

    def __init__(self, labels: ReplayLabels, outputs: Tensor, classes: Tensor, criterion: Criterion):
        """
        Args:
            labels: ``hard`` or ``soft``.
            outputs: some of a solver's, for their form.
            classes: some labels of the stream, int64 [N].
            criterion: outputs and labels -> loss. A copy of it is asked.

        Raises:
            ValueError: outputs of another form; one output that is no logit of a binary cross-entropy, where there is
                more than class 0; a criterion that does not take soft labels, or does not say what outputs mean.
        """
        self.labels = labels
        if not isinstance(outputs, Tensor) or outputs.dim() not in (1, 2):
            found = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(
                f"generative replay reads labels off outputs [N, classes], or one logit a sample; the solver's are "
                f"{found}"
            )
        some = torch.zeros(SAMPLES, *outputs.shape[1:], dtype=outputs.dtype, device=outputs.device)
        with same_random_numbers():
            asked = deepcopy(criterion)
            self.one_logit = some[0].numel() == 1 and _takes_one_logit(asked, some, classes)
            # Outputs of one class are read as those of several: of a head that grows.
            if some[0].numel() == 1 and not self.one_logit and (some.dim() == 1 or classes.any()):
                raise ValueError(
                    f"the solver has one output a sample, and the criterion ({_name_of(criterion)}) is no binary "
                    f"cross-entropy between its logit and the class, 0 or 1: what it answers cannot be told. Give the "
                    f"solver an output for each class, or take F.binary_cross_entropy_with_logits"
                )
            if labels == "soft":
                self.likelihood = _likelihood(asked, *self._asked_softly(some, outputs))

    def __call__(self, answers: Tensor, outputs: Tensor) -> Tensor:
        """Returns the labels that a previous solver's outputs are for the present one's, which may be more."""
        if self.labels == "hard":
            return (answers.flatten() > 0).long() if self.one_logit else answers.argmax(dim=1)
        if self.one_logit:
            return answers.flatten().sigmoid()
        return functional.pad(_mean(self.likelihood, answers), (0, outputs.shape[1] - answers.shape[1]))

    def _asked_softly(self, some: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns outputs and soft labels by which a criterion is known."""
        if self.one_logit:
            return some, some.flatten().sigmoid()
        if some.shape[1] == 1:  # a softmax of one output has no gradient
            some = some.expand(-1, 2)
        elif normalised(outputs):
            some = some.log_softmax(dim=1)
        # The same for all samples, so that weights of the classes are one factor.
        return some, torch.linspace(0, 1, some.shape[1]).to(some).softmax(dim=0).expand_as(some)


def _mean(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """Returns the mean of the density of these outputs [N, K]: 0 for what is no answer."""
    if likelihood == "categorical":
        return outputs.softmax(dim=1)
    return outputs.sigmoid() if likelihood == "bernoulli" else outputs.masked_fill(outputs == MASKED, 0)


def _takes_one_logit(criterion: Criterion, some: Tensor, classes: Tensor) -> bool:
    """Tells whether a loss is the binary cross-entropy of the logit of class 1, each class weighted or not."""
    for label, sign in ((0, 1), (1, -1)):
        labels = torch.full((SAMPLES,), label).to(classes)
        loss = lambda outputs, labels=labels: criterion(outputs, labels)  # noqa: E731
        if likelihood_by_gradient(loss, some) != "bernoulli":
            return False
        at = some.clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(at), at)
        if not (gradient.sign() == sign).all():
            return False
    return True


def _likelihood(criterion: Criterion, some: Tensor, soft: Tensor) -> Likelihood:
    """Returns the density that a criterion of soft labels is of, which says what outputs mean.

    Raises:
        ValueError: it takes no soft labels, or is of no density that is known.
    """
    try:
        criterion(some, soft)
    except Exception as error:  # whatever it raises
        raise ValueError(
            f"replay_labels='soft' needs a criterion that takes probabilities for targets, here of shape "
            f"{['N', *soft.shape[1:]]}, as nn.CrossEntropyLoss does; {_name_of(criterion)} takes none "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}). Take replay_labels='hard'"
        ) from error
    likelihood = likelihood_of(criterion) or likelihood_by_gradient(lambda outputs: criterion(outputs, soft), some)
    if likelihood is None:
        raise ValueError(
            f"replay_labels='soft' needs a criterion that says what the solver's outputs mean: a cross-entropy, binary "
            f"or not, or squared error. {_name_of(criterion)} is none of them. Take replay_labels='hard', or let "
            f"forward() do what the criterion does with outputs before (divide them by a temperature)"
        )
    return likelihood


def _name_of(criterion: object) -> str:
    return getattr(criterion, "__name__", type(criterion).__name__)
