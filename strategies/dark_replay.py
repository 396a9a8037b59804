"""Dark experience replay: what is rehearsed are the outputs that the network had when it saw a sample.

Buzzega, Boschini, Porrello, Abati & Calderara 2020, "Dark Experience for General Continual Learning: a Strong, Simple
Baseline" (NeurIPS, arXiv 2004.07211), Algorithm 1 (DER) and Algorithm 2 (DER++). In every step, with z' the outputs
kept with x', and (x', z') and (x'', y'') drawn from the memory one after the other:

    loss + alpha ||z' - h(x')||^2 / K + beta cross-entropy(y'', h(x''))

where h gives the network's K outputs (logits); DER has no last term. The 1/K is the public code's (aimagelab/mammoth,
models/der.py: a mean over outputs). The memory is a reservoir of everything seen so far, the present experience
included, so that neither task labels nor the ends of experiences are needed.
"""

from __future__ import annotations

import torch
from avalanche.models import avalanche_forward
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.nn import functional

from engrams.strategies.kept import State
from engrams.strategies.quadratic_penalty import refuse_negative


class DERPlugin(SupervisedPlugin):
    """Dark experience replay, under any Avalanche strategy that has one label a sample."""

    def __init__(self, mem_size: int, alpha: float, beta: float = 0.0, batch_size_mem: int | None = None):
        """
        Args:
            mem_size: samples in the memory, at least 1. What is kept and what is drawn is decided by torch's global
                generator.
            alpha: of the distance between outputs, above, >= 0.
            beta: of the samples' cross-entropy, above, >= 0; 0 is DER, more is DER++.
            batch_size_mem: samples drawn in a step, for each of the two terms; None for as many as the minibatch has.

        Raises:
            ValueError: an argument outside its range.
        """
        super().__init__()
        refuse_negative("alpha", alpha)
        refuse_negative("beta", beta)
        for name, value in (("mem_size", mem_size), ("batch_size_mem", batch_size_mem)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self.mem_size, self.alpha, self.beta, self.batch_size_mem = mem_size, alpha, beta, batch_size_mem
        self._forget()

    def _forget(self) -> None:
        self.seen = 0
        self._kept: dict[str, Tensor] = {}

    def state_dict(self) -> State:
        """Returns the memory, and how many samples went by."""
        return {"seen": self.seen, "kept": self._kept}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self.seen, self._kept = state["seen"], dict(state["kept"])

    state_dict_within, load_state_dict_within = state_dict, load_state_dict

    def before_training_exp(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter == 0:  # of another strategy than before, perhaps
            self._forget()

    def before_backward(self, strategy, **kwargs):
        if not self.seen:
            return
        outputs, drawn = self._outputs_of_drawn(strategy)
        kept = drawn["outputs"]
        known = ~kept.isnan()  # a head may have outputs that were not there then
        distance = functional.mse_loss(outputs[:, : kept.shape[1]][known], kept[known])
        strategy.loss = strategy.loss + self.alpha * distance
        if self.beta:
            outputs, drawn = self._outputs_of_drawn(strategy)
            strategy.loss = strategy.loss + self.beta * functional.cross_entropy(outputs, drawn["y"])

    def after_update(self, strategy, **kwargs):
        outputs = strategy.mb_output.detach()
        for module in strategy.model.modules():
            if getattr(module, "masking", False):  # of classes not met yet: Avalanche's heads put a number for them
                outputs = outputs.masked_fill(outputs == module.mask_value, torch.nan)
        self._keep({"x": strategy.mb_x, "y": strategy.mb_y, "tasks": strategy.mb_task_id, "outputs": outputs})

    def _outputs_of_drawn(self, strategy) -> tuple[Tensor, dict[str, Tensor]]:
        self._kept = {name: column.to(strategy.device) for name, column in self._kept.items()}  # once it was loaded
        held = min(self.seen, self.mem_size)
        places = torch.randperm(held)[: self.batch_size_mem or len(strategy.mb_x)].to(strategy.device)
        drawn = {name: column[places] for name, column in self._kept.items()}
        return avalanche_forward(strategy.model, drawn["x"], drawn["tasks"]), drawn

    def _keep(self, new: dict[str, Tensor]) -> None:
        """Reservoir sampling (Vitter 1985): whatever was seen so far is in the memory with equal probability."""
        count = len(new["y"])
        before = torch.arange(self.seen, self.seen + count)
        places = torch.where(before < self.mem_size, before, (torch.rand(count).double() * (before + 1)).long())
        self.seen += count
        # Where two of a minibatch fall on one place, the later one stays.
        chosen = {place: sample for sample, place in enumerate(places.tolist()) if place < self.mem_size}
        if not chosen:
            return
        samples, places = torch.tensor(list(chosen.values())), torch.tensor(list(chosen))
        for name, column in new.items():
            kept = self._room_for(name, column)
            if name == "outputs":
                kept[places] = torch.nan
                kept[places, : column.shape[1]] = column[samples.to(column.device)].to(kept)
            else:
                kept[places] = column[samples.to(column.device)].to(kept)

    def _room_for(self, name: str, new: Tensor) -> Tensor:
        """The memory's column for samples like these; that of outputs grows with them."""
        kept = self._kept.get(name)
        if kept is None:
            kept = new.new_zeros(self.mem_size, *new.shape[1:])
        elif name == "outputs" and new.shape[1] > kept.shape[1]:
            kept = functional.pad(kept, (0, new.shape[1] - kept.shape[1]), value=torch.nan)
        self._kept[name] = kept
        return kept
