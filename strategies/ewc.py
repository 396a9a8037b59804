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

from torch import Tensor

from engrams.strategies.contract import Fraction, Hyperparameters, Lambda, LogUniform, Positive, Strategy
from engrams.strategies.importance import Fisher, Likelihood, check_fisher_options, diagonal_fisher
from engrams.strategies.quadratic_penalty import Consolidation, QuadraticPenaltyPlugin


class EWCPlugin(QuadraticPenaltyPlugin):
    """Elastic weight consolidation for any Avalanche strategy.

    At the end of every experience the diagonal Fisher information of its training data is measured, in eval mode;
    from the next experience on, (lambda / 2) F (theta - theta*)^2 is added to the loss. A head is not penalised before
    it has been trained, units added to a layer begin with importance 0, buffers and frozen parameters are left alone.
    (A penalised parameter has a gradient, if only of zero, so an optimiser that keeps its momentum from one experience
    to the next moves an old head a little, where without a penalty it would not touch it.)

    Memory and time a step are O(parameters) for ``corrected`` and ``online``, O(parameters x experiences) for
    ``separate``.
    """

    def __init__(
        self,
        ewc_lambda: float,
        consolidation: Consolidation = "corrected",
        fisher: Fisher = "exact",
        fisher_samples: int | None = None,
        gamma: float = 1.0,
        *,
        likelihood: Likelihood = "categorical",
        noise_std: float = 1.0,
    ):
        """
        Args:
            ewc_lambda: lambda above, >= 0: how much old experiences count against the new one. With a loss that is the
                mean negative log-likelihood, experiences of equal size and lambda = 1 the penalty is the Laplace
                approximation of the posterior of the data seen so far.
            consolidation: ``separate``, ``corrected`` or ``online``, as above.
            fisher: ``exact``, ``sampled``, ``empirical`` or ``batched``; see :func:`diagonal_fisher`. ``batched`` uses
                the strategy's training mini-batch size.
            fisher_samples: how many training samples the Fisher is measured on; None for all.
            gamma: decay of ``online``, in [0, 1].
            likelihood: ``categorical`` for softmax outputs, ``gaussian`` for regression with a squared error.
            noise_std: standard deviation of the gaussian likelihood, > 0.

        Raises:
            ValueError: an argument outside its range.
        """
        super().__init__(ewc_lambda / 2, consolidation, gamma)
        check_fisher_options(fisher, fisher_samples, likelihood, noise_std)
        self.ewc_lambda = ewc_lambda
        self.fisher: Fisher = fisher
        self.fisher_samples = fisher_samples
        self.likelihood: Likelihood = likelihood
        self.noise_std = noise_std

    def importance(self, strategy) -> dict[str, Tensor]:
        """F of the experience just learned."""
        return diagonal_fisher(
            strategy.model,
            strategy.experience.dataset.eval(),
            self.fisher,
            self.fisher_samples,
            likelihood=self.likelihood,
            noise_std=self.noise_std,
            batch_size=strategy.train_mb_size,
        )


# --- in the catalogue -------------------------------------------------------------------------------------------------


EWC_LAMBDAS = LogUniform(1e1, 1e6)


class EWCHyperparameters(Hyperparameters):
    """What :class:`EWCPlugin` takes, but for how tasks are consolidated."""

    ewc_lambda: Lambda
    fisher: Fisher = "exact"
    fisher_samples: Positive | None = None


class OnlineEWCHyperparameters(EWCHyperparameters):
    """The same, and the decay of the running sum."""

    gamma: Fraction


ENTRIES = {
    "ewc-separate": Strategy(
        plugin=lambda h: EWCPlugin(h.ewc_lambda, "separate", h.fisher, h.fisher_samples),
        hyperparameters=EWCHyperparameters,
        search={"ewc_lambda": EWC_LAMBDAS},
    ),
    "ewc": Strategy(
        plugin=lambda h: EWCPlugin(h.ewc_lambda, "corrected", h.fisher, h.fisher_samples),
        hyperparameters=EWCHyperparameters,
        search={"ewc_lambda": EWC_LAMBDAS},
    ),
    "ewc-online": Strategy(
        plugin=lambda h: EWCPlugin(h.ewc_lambda, "online", h.fisher, h.fisher_samples, h.gamma),
        hyperparameters=OnlineEWCHyperparameters,
        search={"ewc_lambda": EWC_LAMBDAS},
    ),
}
