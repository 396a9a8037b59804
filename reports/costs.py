"""What a run takes, as its record has it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

LEARNING = ("model", "optimizer")
"""Parts that every learner has; the others are what a strategy keeps so as not to forget."""


class Costs(BaseModel):
    """What a run takes besides its wall-clock seconds.

    ``processor_seconds``, of all cores, are those of training and evaluation, as the record's ``seconds`` are; they
    move less with what else the machine does. ``peak_memory``, in bytes: of a GPU, what tensors took; else what the
    process took, with Python, the libraries and the data; None where the system does not say it. A run that went on
    from a checkpoint says that of its last process.

    ``bytes``: what is held at the end of the stream, part by part: the model, the optimiser's state, and under the
    names of their attributes what the strategy and its plugins keep (importances, anchors, a buffer, a previous
    model, a generator with its optimisers). Samples that are kept count whole, whether they were copied or not.

    ``operations``: floating-point operations of training, by kind of step (``training`` of the model, ``generator``,
    ``replay``, ``importance``), as torch's ``FlopCounterMode`` counts them: matrix products, convolutions and
    attention, a multiplication and an addition being two. One step of a kind and size is counted in every experience
    and taken for all that are like it; ``steps`` says how many there were. Not counted: evaluation, whatever is
    element by element (activations, optimisers, penalties), and what Avalanche's own plugins do outside of a training
    step (its EWC and MAS measure importance there, its generative replay draws there).
    """

    model_config = ConfigDict(extra="forbid")

    processor_seconds: float
    peak_memory: int | None = None
    bytes: dict[str, int]
    operations: dict[str, int]
    steps: dict[str, int]

    @property
    def kept(self) -> int:
        """Bytes of what is kept besides the model and its optimiser."""
        return sum(size for part, size in self.bytes.items() if part not in LEARNING)

    @property
    def all_operations(self) -> int:
        """Returns those of all steps."""
        return sum(self.operations.values())
