"""A memory of fixed size in which everything that went by is with the same probability."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional

from engrams.strategies.arguments import at_least_one
from engrams.strategies.kept import State


class Reservoir:
    """Reservoir sampling (Vitter 1985, Algorithm R): the n-th sample takes a place with probability size / n."""

    def __init__(self, size: int, growing: Collection[str] = ()):
        """
        Args:
            size: samples, at least 1. What is kept and what is drawn is decided by torch's global generator.
            growing: columns whose vectors may have more numbers later, or fewer; what a sample lacks is NaN.

        Raises:
            ValueError: size below 1.
        """
        at_least_one(mem_size=size)
        self.size, self.growing = size, growing
        self.seen = 0
        self.columns: dict[str, Tensor] = {}
        """Name -> [size, ...], of which only the first rows are filled at the beginning."""

    def __len__(self) -> int:
        return min(self.seen, self.size)

    def state_dict(self) -> State:
        """Returns what is kept, and how many samples went by."""
        return {"seen": self.seen, "kept": deepcopy(self.columns)}

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state."""
        self.seen, self.columns = state["seen"], deepcopy(state["kept"])

    def draw(self, count: int, device: torch.device, where: Tensor | None = None) -> dict[str, Tensor]:
        """Returns ``count`` different samples, or all if there are fewer, column by column.

        Args:
            count: how many.
            device: where they are to lie.
            where: bool [len(self)], which may be drawn; None for all.
        """
        self.columns = {name: column.to(device) for name, column in self.columns.items()}  # once it was loaded
        if where is None:
            places = torch.randperm(len(self))[:count].to(device)
        else:
            allowed = where.nonzero().flatten()
            places = allowed[torch.randperm(len(allowed))[:count].to(allowed.device)]
        return {name: column[places] for name, column in self.columns.items()}

    def add(self, new: Mapping[str, Tensor]) -> None:
        """Offers samples, a column [N, ...] each.

        Raises:
            ValueError: they have another shape than those before, in a column that does not grow.
        """
        for name, column in new.items():
            if name in self.columns and name not in self.growing:
                refuse_other_shapes([self.columns[name], column])
        count = len(next(iter(new.values())))
        before = torch.arange(self.seen, self.seen + count)
        places = torch.where(before < self.size, before, (torch.rand(count).double() * (before + 1)).long())
        self.seen += count
        # Where two of a minibatch fall on one place, the later one stays.
        chosen = {place: sample for sample, place in enumerate(places.tolist()) if place < self.size}
        if not chosen:
            return
        samples, places = torch.tensor(list(chosen.values())), torch.tensor(list(chosen))
        for name, column in new.items():
            kept = self._room_for(name, column)
            rows = column[samples.to(column.device)].to(kept)
            if rows.shape[1:] == kept.shape[1:]:
                kept[places] = rows
            else:
                kept[places] = torch.nan
                kept[places, : rows.shape[1]] = rows

    def _room_for(self, name: str, new: Tensor) -> Tensor:
        kept = self.columns.get(name)
        if kept is None:
            kept = new.new_zeros(self.size, *new.shape[1:])
        elif name in self.growing and new.dim() == 2 and new.shape[1] > kept.shape[1]:
            kept = functional.pad(kept, (0, new.shape[1] - kept.shape[1]), value=torch.nan)
        self.columns[name] = kept
        return kept


def put_together(parts: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Returns the columns of several parts, those of each behind those of the one before it.

    Raises:
        ValueError: samples have several shapes.
    """
    columns = list(zip(*parts, strict=True))
    for of_parts in columns:
        refuse_other_shapes(of_parts)
    return [torch.cat(of_parts) for of_parts in columns]


def refuse_other_shapes(columns: Sequence[Tensor]) -> None:
    """Raises a ValueError if samples that are to lie together, a column [N, ...] each, have several shapes."""
    shapes = sorted({tuple(column.shape[1:]) for column in columns})
    if len(shapes) > 1:
        raise ValueError(
            f"a memory keeps samples of one shape, and has met {' and '.join(map(str, shapes))}: let the data set give "
            f"all of one shape (sequences padded to one length), not the collation"
        )
