"""What a solver's outputs answer, as labels that its criterion takes: a class, or how probable each one is."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional

from engrams.strategies.choices import ReplayLabels
from engrams.strategies.criteria import likelihood_by_gradient
from engrams.strategies.undisturbed import same_random_numbers

Criterion = Callable[[Tensor, Tensor], Tensor]
SAMPLES = 3
"""On which a criterion is asked what it takes."""


class Answers:
    """Reads outputs [N, K], one for each class, or those of a binary classifier with one logit, [N, 1] or [N].

    ``hard`` labels are classes, int64 [N]. ``soft`` ones are probabilities: of the classes, [N, K], or of class 1 where
    there is one logit, [N].
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
                more than class 0; a criterion that does not take soft labels.
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
                _refuse_other_criteria(asked, some, self(some, some))

    def __call__(self, answers: Tensor, outputs: Tensor) -> Tensor:
        """Returns the labels that a previous solver's outputs are for the present one's, which may be more."""
        if self.one_logit:
            return (answers.flatten() > 0).long() if self.labels == "hard" else answers.flatten().sigmoid()
        if self.labels == "hard":
            return answers.argmax(dim=1)
        return functional.pad(answers.softmax(dim=1), (0, outputs.shape[1] - answers.shape[1]))


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


def _refuse_other_criteria(criterion: Criterion, some: Tensor, soft: Tensor) -> None:
    try:
        criterion(some, soft)
    except Exception as error:  # whatever it raises
        raise ValueError(
            f"replay_labels='soft' needs a criterion that takes probabilities for targets, here of shape "
            f"{['N', *soft.shape[1:]]}, as nn.CrossEntropyLoss does; {_name_of(criterion)} takes none "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}). Take replay_labels='hard'"
        ) from error


def _name_of(criterion: object) -> str:
    return getattr(criterion, "__name__", type(criterion).__name__)
