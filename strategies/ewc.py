"""Elastic weight consolidation.

Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", PNAS 114(13), eq. 3:

    L(theta) = L_B(theta) + sum_i (lambda / 2) F_i (theta_i - theta*_{A,i})^2

and what becomes of it with more than two tasks:

    separate   sum_k (lambda / 2) F_k (theta - theta*_k)^2                   Kirkpatrick et al. 2017
    corrected  (lambda / 2) (sum_k F_k) (theta - theta*_T)^2                 Huszár 2017, arXiv:1712.03847
    online     (lambda / 2) gamma F*_T (theta - theta*_T)^2,
               F*_T = gamma F*_{T-1} + F_T                                   Schwarz et al. 2018, arXiv:1805.06370
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from avalanche.training.templates.problem_type import SupervisedProblem
from torch import Tensor
from torch.utils.data import Dataset

from engrams.strategies.anchors import ByName, Consolidation
from engrams.strategies.arguments import at_least_one, not_negative
from engrams.strategies.choices import Fisher, PenaltyStep
from engrams.strategies.criteria import (
    counted,
    left_out,
    likelihood_by_gradient,
    likelihood_of,
    of_labels,
    options_of,
    refuse_unnormalised,
)
from engrams.strategies.densities import Likelihood, density, fitting
from engrams.strategies.general_gradients import outputs_of
from engrams.strategies.importance import check_fisher_options, diagonal_fisher, refuse_too_many
from engrams.strategies.minibatches import Minibatch, minibatches
from engrams.strategies.networks import AskedThroughStrategy, asked
from engrams.strategies.precision import wide
from engrams.strategies.quadratic_penalty import (
    Excluded,
    QuadraticPenaltyPlugin,
    first_samples,
    spread_samples,
    strength,
)
from engrams.strategies.undisturbed import evaluation_mode, same_random_numbers


class EWCPlugin(QuadraticPenaltyPlugin):
    """Elastic weight consolidation for any Avalanche strategy.

    At the end of every experience the diagonal Fisher information of its training data is measured, in eval mode;
    from the next experience on, (lambda / 2) F (theta - theta*)^2 is added to the loss. A head is not penalised before
    it has been trained, units added to a layer begin with importance 0, buffers and frozen parameters are left alone.
    (A penalised parameter has a gradient, if only of zero, so an optimiser that keeps its momentum from one experience
    to the next moves an old head a little, where without a penalty it would not touch it.)

    The Fisher is that of the strategy's criterion: cross-entropy (or NLL) is categorical, binary cross-entropy
    Bernoulli, squared error Gaussian. A criterion that somebody wrote is known by its gradient, and so is what it
    leaves out (void pixels, targets that are missing): it counts in no Fisher, as a sample whose label is
    ``ignore_index`` does not; where ``likelihood`` has to say the density, ``ignore_index`` alone is left out. Class
    weights and label smoothing are not regarded, which is said.

    The Fisher is measured on what the strategy trains on (its ``adapted_dataset``), with the transformations of
    evaluation; what other plugins do to minibatches (normalise them, mix them) is no part of it.

    F is of the density itself, whatever factor the loss has: ``nn.MSELoss`` with K outputs is the mean negative
    log-likelihood of ``noise_std`` = sqrt(K / 2), and ``nn.BCEWithLogitsLoss`` with K outputs is 1/K of it. Before
    anything is trained, a few samples are measured, and what cannot work is refused.

    Memory and time a step are O(parameters) for ``corrected`` and ``online``, O(parameters x experiences) for
    ``separate``.
    """

    why_all_are_0 = "The outputs may not depend on the parameters, or the density may not be the loss's"

    def __init__(
        self,
        ewc_lambda: float,
        consolidation: Consolidation = "corrected",
        fisher: Fisher = "exact",
        fisher_samples: int | None = None,
        gamma: float = 1.0,
        *,
        likelihood: Likelihood | None = None,
        noise_std: float = 1.0,
        weigh_by_samples: bool = False,
        normalise: bool = False,
        penalty_step: PenaltyStep = "gradient",
        exclude: Excluded | None = (),
        consolidate_every: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ):
        """
        Args:
            ewc_lambda: lambda above, >= 0: how much old experiences count against the new one. With a loss that is the
                mean negative log-likelihood, experiences of equal size and lambda = 1 the penalty is the Laplace
                approximation of the posterior of the data seen so far.
            consolidation: ``separate``, ``corrected`` or ``online``, as above.
            fisher: ``exact``, ``sampled``, ``empirical`` or ``batched``; see :func:`diagonal_fisher`.
            fisher_samples: how many training samples the Fisher is measured on; None for all.
            gamma: decay of ``online``, in [0, 1].
            likelihood: what p(y|x) is; see :func:`diagonal_fisher`. None: that of the strategy's criterion. To be given
                for a criterion whose density is not known; one that contradicts the criterion is refused. It is that of
                the outputs as they are: what a criterion of one's own does to them first (masks, scales) is no part of
                it, and a warning says so.
            noise_std: standard deviation of the gaussian likelihood, > 0.
            weigh_by_samples: F_k is multiplied by N_k / N_t, with N_k samples in experience k and N_t in the present
                one, whose mean loss counts 1. It is then a *sum* over samples, as in Laplace's approximation (Huszár
                2017), and lambda = 1 is right for experiences of unequal size, too. Samples without a
                label (``ignore_index``) are counted as well: leave them out of the data where there are many.
            normalise: F of every experience is divided by its mean over the penalised parameters, so that all
                experiences count alike (after Schwarz et al. 2018, who normalise the Fishers of tasks; the mean
                is our choice of what by). lambda has another meaning then.
            penalty_step: ``gradient`` or ``proximal``, which is stable for every lambda; see
                :class:`QuadraticPenaltyPlugin`.
            exclude: parameters that are not penalised, by name, pattern or kind of module; likewise.
            consolidate_every: samples after which to consolidate, for streams that hide where experiences end.
            batch_size: samples in one pass of the Fisher (for ``batched``, in a mini-batch). None: for ``batched``, the
                strategy's training mini-batch; else as many as take no more memory than two training steps.
            num_workers: processes that load the data for the Fisher; None: as many as ``strategy.train`` was given.

        Raises:
            ValueError: an argument outside its range; before an experience is trained whose criterion or network has
                not been met, what cannot work with them (a criterion that is not known, outputs that do not fit it, a
                network in which a sample has no gradient of its own); after an experience, parameters or importances
                that are not finite.
        """
        not_negative(ewc_lambda=ewc_lambda)
        super().__init__(
            ewc_lambda / 2,
            consolidation,
            gamma,
            penalty_step=penalty_step,
            exclude=exclude,
            consolidate_every=consolidate_every,
        )
        if normalise and weigh_by_samples:
            raise ValueError("normalise makes experiences count alike, weigh_by_samples does not: choose one of them")
        check_fisher_options(fisher, fisher_samples, likelihood or "categorical", noise_std)
        at_least_one(batch_size=batch_size)
        self.fisher: Fisher = fisher
        self.fisher_samples = fisher_samples
        self.likelihood = likelihood
        self.noise_std = noise_std
        self.weigh_by_samples = weigh_by_samples
        self.normalise = normalise
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._present_samples = 1
        self._found: tuple[object, Likelihood, bool] | None = None
        self._told_of_another = False

    ewc_lambda = strength("ewc_lambda", 1 / 2)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_found": None}  # a criterion that is a function may not be pickled

    def importance(self, strategy) -> ByName:
        """Returns F of the experience just learned; the sum over its samples with ``weigh_by_samples``."""
        data = self.data_since(strategy)
        fisher = self._measured(strategy, data, self.fisher, self.fisher_samples)
        if not self.weigh_by_samples:
            return fisher
        return {name: len(data) * f for name, f in fisher.items()}  # type: ignore[arg-type]

    def consolidate(self, importances: ByName, anchors: ByName) -> None:
        if self.normalise and importances:
            count = sum(f.numel() for f in importances.values())
            mean = sum(f.sum() for f in importances.values()) / count
            importances = {name: f / mean if mean > 0 else f for name, f in importances.items()}  # type: ignore[operator]
        super().consolidate(importances, anchors)

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        self._present_samples = self._samples_to_come(strategy.experience)

    def _samples_to_come(self, experience) -> int:
        """How many there are until the next consolidation; at least, with ``consolidate_every``."""
        if self.consolidate_every is not None:
            return max(self.consolidate_every, len(self._since[-1]))  # type: ignore[arg-type]
        whole = getattr(experience, "origin_experience", None)
        return len(whole.dataset if whole is not None else self._since[-1])  # type: ignore[arg-type]

    def after_forward(self, strategy, **kwargs):
        self._warn_of_another_criterion(strategy)

    def before_backward(self, strategy, **kwargs):
        self._warn_of_another_criterion(strategy)
        super().before_backward(strategy, **kwargs)

    def _warn_of_another_criterion(self, strategy) -> None:
        """Warns once of a plugin that puts its own criterion in the place of the one whose density is measured."""
        now = getattr(strategy, "_criterion", None)
        if self._told_of_another or self.likelihood is not None or self._found is None or now is self._found[0]:
            return
        self._told_of_another = True
        warnings.warn(
            f"{type(self).__name__}: the loss is not the strategy's criterion ({_name_of(self._found[0])}): a plugin "
            f"puts another in its place while a minibatch is learned (iCaRL does), and the Fisher is not of that one. "
            f"Give the strategy the loss that is learned as its criterion, or take MAS or SI, which ask for none",
            stacklevel=3,
        )

    @property
    def _scale(self) -> float:
        return super()._scale / (self._present_samples if self.weigh_by_samples else 1)

    def check(self, strategy) -> None:
        criterion = getattr(strategy, "_criterion", None)
        likelihood = self._likelihood(strategy)
        for said in left_out(criterion) if likelihood == likelihood_of(criterion) else ():
            warnings.warn(f"{type(self).__name__}: the criterion has {said}", stacklevel=2)
        with _some_samples(strategy, first_samples(self.data_since(strategy))) as some:
            loss, outputs, y, _ = some
            density(likelihood).refuse(outputs)
            _refuse_logits_in_training_alone(likelihood, some)
            if self.fisher == "exact":
                refuse_too_many(outputs)
            if likelihood == "categorical" and (self.likelihood is None or not _is_own(strategy)):
                refuse_unnormalised(_loss_of(strategy), loss, outputs)
            elif likelihood == "categorical" and outputs.dim() > 2 and _are_indices(y):
                fitting(y, outputs)  # the classes might be in another dimension
            if self.likelihood is None and self.fisher in ("empirical", "batched") and _is_own(strategy):
                _refuse_other_targets(self.fisher, of_labels(loss, outputs, y, likelihood))
        # One signal says whether it can be measured; the exact Fisher's other classes are no different.
        data = first_samples(self.data_since(strategy))
        self._measured(strategy, data, "sampled" if self.fisher == "exact" else self.fisher, None)

    def _measured(self, strategy, data: Dataset, fisher: Fisher, samples: int | None) -> dict[str, Tensor]:
        likelihood = self._likelihood(strategy)
        assert self._found is not None
        through = AskedThroughStrategy(strategy)

        def counted_by_loss(outputs: Tensor, batch: Minibatch) -> Tensor | None:
            with same_random_numbers():
                return counted(partial(through.loss, batch.columns), outputs, likelihood)

        return diagonal_fisher(
            asked(strategy),
            data,
            fisher,
            samples,
            likelihood=likelihood,
            noise_std=self.noise_std,
            ignore_index=_ignore_index(strategy),
            counted=counted_by_loss if self._found[2] else None,
            **self._loading(strategy, self.batch_size, self.num_workers),
        )

    def _likelihood(self, strategy) -> Likelihood:
        """The density of the strategy's criterion, or the one that was given; found once for a criterion."""
        criterion = getattr(strategy, "_criterion", None)
        if self._found is None or self._found[0] is not criterion:
            self._found = criterion, *self._find_likelihood(strategy)
        return self._found[1]

    def _find_likelihood(self, strategy) -> tuple[Likelihood, bool]:
        """Returns the density, and whether it is known by the loss's gradient.

        Raises:
            ValueError: the criterion's density is not known, and none was given; or it is known and another was given.
        """
        criterion = getattr(strategy, "_criterion", None)
        own = _is_own(strategy)
        known = self._likelihood_by_gradient(strategy) if own else likelihood_of(criterion)
        if self.likelihood is None and known is None:
            raise ValueError(
                f"the criterion ({_loss_of(strategy)}) is none whose density is known (cross-entropy, NLL, binary "
                f"cross-entropy, squared error): say which it is by "
                f"likelihood={' or '.join(map(repr, get_args(Likelihood)))}"
            )
        if self.likelihood is not None and known not in (None, self.likelihood):
            raise ValueError(
                f"likelihood={self.likelihood!r} contradicts the criterion, whose density is {known!r}: a Fisher under "
                f"another density than the loss's says nothing of it. Leave likelihood out"
            )
        if own and known is None:
            warnings.warn(
                f"{type(self).__name__}: the gradient of the criterion ({_loss_of(strategy)}) is not that of "
                f"likelihood={self.likelihood!r}: the Fisher is that of the outputs as they are. If the criterion "
                f"masks or scales them (classes not met, a temperature), do so in the network or in the strategy's "
                f"forward",
                stacklevel=4,
            )
        return self.likelihood or known, own and known is not None  # type: ignore[return-value]

    def _likelihood_by_gradient(self, strategy) -> Likelihood | None:
        """What the strategy's own loss does on samples from all over the data: the first may be of one class alone."""
        count = max(8, min(32, strategy.train_mb_size))
        with _some_samples(strategy, spread_samples(self.data_since(strategy), count)) as (loss, outputs, y, _):
            found = likelihood_by_gradient(loss, outputs)
            if found is None and of_labels(lambda f: loss(f.log_softmax(1)), outputs, y, "categorical"):
                refuse_unnormalised(_loss_of(strategy), loss, outputs)
            if found is None and outputs.dim() > 2:
                last = outputs.movedim(-1, 1)
                of_last = likelihood_by_gradient(lambda f: loss(f.movedim(1, -1)), last)
                if of_last == "categorical":
                    raise ValueError(
                        f"the criterion takes the last dimension of the outputs {list(outputs.shape)} for the classes: "
                        f"give [N, K, ...], as nn.CrossEntropyLoss takes them (outputs.movedim(-1, 1))"
                    )
            return found


class _SomeSamples(NamedTuple):
    """What is known of some samples before anything is trained."""

    loss: Callable[[Tensor], Tensor]
    """The strategy's, as a function of outputs."""
    outputs: Tensor
    y: Tensor
    """Their labels; empty where there are none."""
    in_training: Callable[[], Tensor | None]
    """Asks the network once more, as it is in training but for dropout and batch norm; None if that gives no
    outputs."""


@contextmanager
def _some_samples(strategy, data: Dataset) -> Iterator[_SomeSamples]:
    """Within: the network in eval mode, and what is known of these samples."""
    model = AskedThroughStrategy(strategy)
    by_mode = [m for m in strategy.model.modules() if m.training and not type(m).__module__.startswith("torch.nn.")]
    with same_random_numbers(), evaluation_mode(model):
        batch = next(minibatches(model, data, len(data), whole=True))  # type: ignore[arg-type]
        outputs, _ = outputs_of(model, batch.inputs, batch.task)

        def in_training() -> Tensor | None:
            for module in by_mode:
                module.training = True
            try:
                return outputs_of(model, batch.inputs, batch.task)[0].detach()
            except Exception:  # whatever it raises: in training it gives something else than outputs
                return None
            finally:
                for module in by_mode:
                    module.training = False

        y = torch.empty(0) if batch.y is None else batch.y
        yield _SomeSamples(partial(model.loss, batch.columns), outputs.detach(), y, in_training)


def _refuse_logits_in_training_alone(likelihood: Likelihood, some: _SomeSamples) -> None:
    """Raises a ValueError if the network gives logits in training and their probabilities in eval mode.

    A softmax of the softmax is another density than the one that is trained. Dropout and batch norm stay as they are in
    eval mode, so that nothing but what the network itself does by ``self.training`` makes a difference.
    """
    if likelihood not in ("categorical", "bernoulli") or (in_training := some.in_training()) is None:
        return
    outputs, in_training = wide(some.outputs), wide(in_training)
    if likelihood == "categorical":  # which dropout in a function, not a module, does not hide
        other = (outputs - in_training).abs().max() > 1e-2
        found = other and (outputs >= 0).all() and (outputs.sum(1) - 1).abs().max() < 1e-2
    else:  # of few numbers, which may be in [0, 1] by chance
        found = (outputs - in_training.sigmoid()).abs().max() < 1e-2
    if found:
        raise ValueError(
            "the network gives logits in training and their probabilities in eval mode, in which an importance is "
            "measured: taken for logits, they are of another density than the loss. Give logits in both, and take the "
            "softmax or sigmoid outside the network"
        )


def _are_indices(y: object) -> bool:
    """Tells whether labels are indices of classes, not the classes' probabilities or of another form."""
    return isinstance(y, Tensor) and not y.is_floating_point()


def _refuse_other_targets(fisher: Fisher, are_labels: bool) -> None:
    if not are_labels:
        raise ValueError(
            f"fisher={fisher!r} reads labels, and the criterion's targets are others (smoothed ones, or the inputs): "
            f"fisher='exact' or 'sampled' read none"
        )


def _is_own(strategy) -> bool:
    """Tells whether the loss is none of torch's: somebody's criterion, or a strategy's method."""
    return _overrides(strategy) or likelihood_of(getattr(strategy, "_criterion", None)) is None


def _overrides(strategy) -> bool:
    """Tells whether the strategy computes its loss by a method of its own."""
    method = getattr(strategy, "criterion", None)
    return method is not None and getattr(method, "__func__", None) is not SupervisedProblem.criterion


def _loss_of(strategy) -> str:
    """Returns the name of what computes the strategy's loss."""
    if _overrides(strategy):
        return f"{type(strategy).__name__}.criterion"
    return _name_of(getattr(strategy, "_criterion", None))


def _ignore_index(strategy) -> int:
    return options_of(getattr(strategy, "_criterion", None)).get("ignore_index", -100)


def _name_of(criterion: object) -> str:
    return getattr(criterion, "__name__", type(criterion).__name__)
