"""Avalanche's streaming linear discriminant analysis, on the inputs themselves: for features of a frozen network."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.models import MultiTaskModule
from avalanche.training.supervised import StreamingLDA
from torch import Tensor, nn


class InputStreamingLDA(StreamingLDA):
    """Avalanche's streaming LDA (Hayes & Kanan 2020, arXiv:1909.01520): a mean a class, one covariance of all.

    What it learns of a sample and how it scores one are Avalanche's. Four things are not: it learns a minibatch at
    once, with the same sums to rounding; what it says of the minibatches that it learns from is by the covariance of
    the experiences before, where Avalanche inverts it in every minibatch; it never answers with a class that it has not
    met, whose score is 0 in Avalanche and may be the highest; and it need not be told how many classes and values there
    are.

    With ``shrinkage`` 1 the covariance is the identity, and the class of the nearest mean is answered.
    """

    cK: Tensor
    """Samples of each class, [classes]."""

    def __init__(self, *, shrinkage: float, streaming_covariance: bool = True, **template: Any):
        """
        Args:
            shrinkage: of the covariance towards the identity, in [0, 1]; Hayes & Kanan have 1e-4.
            streaming_covariance: whether the covariance is learned; else it stays as it begins, all ones.
            template: of Avalanche's template, with a model, which is not used.

        Raises:
            ValueError: the model has a head a task, so that labels of two tasks mean two things.
        """
        if any(isinstance(module, MultiTaskModule) for module in template.pop("model").modules()):
            raise ValueError("streaming LDA has one classifier for all classes; it is for no task-incremental stream")
        template.pop("optimizer")
        super().__init__(
            slda_model=nn.Flatten(),
            input_size=0,
            num_classes=0,
            shrinkage_param=shrinkage,
            streaming_update_sigma=streaming_covariance,
            **template,
        )

    def _before_training_exp(self, **kwargs):
        experience = self.experience
        if self.num_updates == 0:
            self.input_size = experience.dataset[0][0].numel()
            self.Sigma = torch.ones(self.input_size, self.input_size, device=self.device)
            self.Lambda = torch.eye(self.input_size, device=self.device)
            self.muK = torch.zeros(0, self.input_size, device=self.device)
        more = max(0, max(experience.classes_in_this_experience) + 1 - len(self.cK))
        self.muK = torch.cat([self.muK, self.muK.new_zeros(more, self.input_size)])
        self.cK = torch.cat([self.cK, self.cK.new_zeros(more)])
        super()._before_training_exp(**kwargs)

    def training_epoch(self, **kwargs):
        for minibatch in self.dataloader:
            self.mbatch = minibatch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self.prev_num_updates = self.num_updates  # nothing is inverted
            self.mb_output, self.loss = self.forward(), self._make_empty_loss()
            self.fit(self.mb_x.flatten(1), self.mb_y)
            self._after_training_iteration(**kwargs)

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor) -> None:
        """Learns samples as Avalanche does one after another, in their order.

        Sigma_(t+1) = (t Sigma_t + t / (t + 1) (z_t - mu_t) (z_t - mu_t)') / (t + 1), mu_t the mean of the samples of
        z_t's class before it: t Sigma_t is a sum over samples.

        Args:
            x: [N, values].
            y: the class of each, [N].
        """
        off = torch.empty_like(x)
        for label in y.unique():
            of_it = (y == label).nonzero().flatten()
            sums = self.muK[label] * self.cK[label] + x[of_it].cumsum(0)
            before = self.cK[label] + torch.arange(len(of_it), device=x.device)
            off[of_it] = x[of_it] - (sums - x[of_it]) / before.clamp(min=1).unsqueeze(1)
            self.muK[label] = sums[-1] / (before[-1] + 1)
            self.cK[label] += len(of_it)
        t = self.num_updates + torch.arange(len(x), device=x.device).unsqueeze(1)
        self.num_updates += len(x)
        if self.streaming_update_sigma:
            more = (off * (t / (t + 1))).T @ off
            self.Sigma = self.Sigma * ((self.num_updates - len(x)) / self.num_updates) + more / self.num_updates

    def predict(self, X: Tensor) -> Tensor:
        """Returns scores [N, classes]; of a class that has not been met one below all others."""
        classes = max(len(self.cK), int(self.mb_y.max()) + 1)
        met = self.cK > 0
        if not met.any():
            return X.new_zeros(len(X), classes)
        met_scores = super().predict(X)[:, met]
        scores = met_scores.amin(1, keepdim=True).sub(1).expand(-1, classes).clone()
        scores[:, met.nonzero().flatten()] = met_scores
        return scores

    def _check_plugin_compatibility(self):
        """Avalanche would warn of every plugin, since all have the two callbacks around ``backward``."""
