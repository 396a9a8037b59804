"""The steps that a training is made of, named where they are taken, for whoever counts what each kind of them costs.

Avalanche's own iterations are told apart by its hooks; these are the others, in which a strategy trains a generator,
replays, or measures an importance.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

Counting = Callable[[str, Hashable], AbstractContextManager[None]]
"""(kind, what else tells a step of this kind from a dearer or cheaper one: how many samples, say) -> its block."""

_counting: ContextVar[Counting | None] = ContextVar("counting", default=None)


def step_of(kind: str, alike: Hashable = None) -> AbstractContextManager[None]:
    """Returns the block of one step; nothing happens in it besides where nobody counts.

    Args:
        kind: ``generator``, ``replay`` or ``importance``, or one of a strategy's own.
        alike: steps of one kind that are alike in it cost the same, within an experience.
    """
    counting = _counting.get()
    return nullcontext() if counting is None else counting(kind, alike)


@contextmanager
def steps_told(counting: Counting | None) -> Iterator[None]:
    """Within, every step of this thread is told; to nobody, where it is no part of a training (None)."""
    before = _counting.set(counting)
    try:
        yield
    finally:
        _counting.reset(before)
