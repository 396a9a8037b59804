"""A penalty holds importances of earlier experiences, and anchors to be pulled towards, by parameter.

Both belong to a parameter of one model, not to a name: they are followed where it goes, through layers that grow and
models that are compiled, copied or wrapped.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from engrams.strategies.networks import named_parameters

Consolidation = Literal["separate", "corrected", "online"]
ByName = dict[str, Tensor]


class Term(NamedTuple):
    """Stands for importance (parameter - anchor)^2: all have the parameter's present shape and device, the last two
    float32 at least."""

    parameter: nn.Parameter
    importance: Tensor
    anchor: Tensor


class Anchored:
    """Keeps ``importances`` and ``anchors``, and finds the parameters that they belong to.

    What they are, and how ``consolidation`` and ``gamma`` combine those of several experiences, is said by
    :class:`QuadraticPenaltyPlugin`.
    """

    consolidation: Consolidation
    gamma: float

    def _hold_nothing(self) -> None:
        self.importances: Any = [] if self.consolidation == "separate" else {}
        self.anchors: Any = [] if self.consolidation == "separate" else {}
        self._owners: dict[str, nn.Parameter] = {}  # whose anchors they are; a name alone says little

    def consolidate(self, importances: ByName, anchors: ByName) -> None:
        """Takes in what the experience just learned left behind."""
        if self.consolidation == "separate":
            self.importances.append(importances)
            self.anchors.append(anchors)
            return
        # Schwarz et al. 2018: F*_t = gamma F*_{t-1} + F_t; gamma = 1 is Huszár's sum. What is frozen now has F_t = 0.
        for name in self.importances.keys() - importances.keys():
            self.importances[name] = self.gamma * self.importances[name]
        for name, importance in importances.items():
            if name in self.importances:
                importance = importance + self.gamma * grown(self.importances[name].to(importance), importance)
            self.importances[name] = importance
        self.anchors.update(anchors)

    def _pairs(self) -> list[tuple[ByName, ByName]]:
        if self.consolidation == "separate":
            return list(zip(self.importances, self.anchors, strict=True))
        return [(self.importances, self.anchors)]

    def _by_name(self) -> list[dict[str, Any]]:
        """Returns all that is kept by a parameter's name."""
        return [*(kept for pair in self._pairs() for kept in pair), self._owners]

    def _matched(self, model: nn.Module) -> tuple[list[Term], list[str]]:
        """Returns each penalised parameter's terms, in its present shape, and the names that nothing continues."""
        parameters = named_parameters(model)
        lost = self._follow(parameters)
        return self._terms_of(parameters, lost), lost

    def _terms_of(self, parameters: dict[str, nn.Parameter], lost: list[str]) -> list[Term]:
        def beside(kept: Tensor, p: nn.Parameter) -> Tensor:
            return grown(kept.to(p.device, torch.promote_types(p.dtype, torch.float32)), p)

        def parameter(name: str) -> nn.Parameter:
            if name not in parameters:
                raise ValueError(
                    f"{type(self).__name__}: the model has no parameter {name!r}, of which there is an anchor"
                )
            return parameters[name]

        return [
            Term(p, beside(importance, p), beside(anchors[name], p))
            for importances, anchors in self._pairs()
            for name, importance in importances.items()
            if name not in lost
            for p in [parameter(name)]
        ]

    def _followed_into(self, model: nn.Module) -> list[str]:
        """Follows as :meth:`_follow` if some anchor belongs to a parameter of this model; into another one nothing is
        followed, and nothing is lost."""
        parameters = named_parameters(model)
        present = {id(p) for p in parameters.values()}
        held = any(id(owner) in present for owner in self._owners.values())
        return self._follow(parameters) if held else []

    def _follow(self, parameters: dict[str, nn.Parameter]) -> list[str]:
        """Follows every anchored parameter to where it is now, and returns the names of those that are nowhere.

        A parameter is where the same object is, under whatever name; or under its name, if it continues the old one:
        its first units have the old values (layers that grow, models that were copied). What was not anchored through a
        strategy (but put there by hand, or loaded) is known by its name alone. Where one has the name of another that
        is nowhere, the other is forgotten, with a warning.
        """
        present = {id(p): name for name, p in parameters.items()}
        owned = {id(owner) for owner in self._owners.values()}
        renamed: dict[str, str] = {}
        lost = []
        for name in dict.fromkeys(name for importances, _ in self._pairs() for name in importances):
            owner = self._owners.get(name)
            here = parameters.get(name)
            if owner is not None and id(owner) in present:
                if present[id(owner)] != name:
                    renamed[name] = present[id(owner)]
            elif here is None or id(here) in owned or not self._continued(name, here):
                lost.append(name)
            elif owner is not None:
                self._owners[name] = here
        if renamed:
            if replaced := [name for name in lost if name in renamed.values()]:
                self._give_up(replaced, {})
                lost = [name for name in lost if name not in replaced]
            for of_name in self._by_name():
                moved = {new: of_name.pop(old) for old, new in renamed.items() if old in of_name}
                of_name.update(moved)
        return lost

    def _continued(self, name: str, here: nn.Parameter) -> bool:
        owner = self._owners.get(name)
        if owner is not None:
            return continues(here, owner)
        return _may_grow(next(anchors[name] for _, anchors in self._pairs() if name in anchors), here)

    def _give_up(self, lost: list[str], parameters: dict[str, nn.Parameter]) -> None:
        """Forgets the anchors of parameters that are gone, and says which."""
        for of_name in self._by_name():
            for name in lost:
                of_name.pop(name, None)
        exchanged = [name for name in lost if name in parameters]
        gone = [name for name in lost if name not in parameters]
        said = []
        if exchanged:
            said.append(
                f"{', '.join(map(repr, exchanged))}: exchanged for a fresh one, which is not penalised (earlier "
                f"weights of the same network are held if they are loaded into it: load_state_dict)"
            )
        if gone:
            said.append(
                f"{', '.join(map(repr, gone))}: not in the model any more (removed, or renamed and replaced, or "
                f"reparametrised); what was held of it is forgotten"
            )
        warnings.warn(f"{type(self).__name__}: {'; '.join(said)}", stacklevel=3)

    def _changed(self, parameters: dict[str, nn.Parameter]) -> dict[str, float]:
        """Returns the largest change of every held parameter that is not as it was at the latest anchor."""
        if not self._pairs():
            return {}
        importances, anchors = self._pairs()[-1]
        now = {name: _first(parameters[name].detach(), anchors[name]) for name in importances}
        then = {name: anchors[name].to(values) for name, values in now.items()}
        return {
            name: (values - then[name]).abs().max().item()
            for name, values in now.items()
            if not torch.equal(values, then[name])
        }


def _may_grow(old: Tensor, new: Tensor) -> bool:
    return old.dim() == new.dim() and all(before <= now for before, now in zip(old.shape, new.shape, strict=True))


def continues(new: Tensor, old: Tensor) -> bool:
    """Tells whether the new parameter's first units are the old ones."""
    return _may_grow(old, new) and torch.equal(_first(new.detach(), old), old.detach().to(new))


def _first(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns what the smaller ``like`` covers of ``tensor``. Avalanche's incremental layers keep old units first."""
    return tensor[tuple(slice(0, size) for size in like.shape)]


def grown(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns ``tensor`` padded with zeros to the shape of ``like``: units added since have importance 0."""
    if tensor.shape == like.shape:
        return tensor
    if not _may_grow(tensor, like):
        raise ValueError(
            f"a parameter shrank from shape {tuple(tensor.shape)} to {tuple(like.shape)}; it may only grow"
        )
    return with_first_units(tensor.new_zeros(like.shape), tensor)


def with_first_units(values: Tensor, old: Tensor) -> Tensor:
    """Returns a copy of ``values`` whose first units are the old ones."""
    values = values.clone()
    _first(values, old).copy_(old)
    return values


def placed(kept: ByName, parameters: dict[str, nn.Parameter]) -> ByName:
    """Returns copies of what was kept by parameters' names, each where its parameter is."""
    return {
        name: values.to(parameters[name].device if name in parameters else values.device, copy=True)
        for name, values in kept.items()
    }
