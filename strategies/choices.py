"""What may be chosen by a word, in methods and in generators.

Apart from what they choose between: whoever only reads what was chosen needs no torch for it.
"""

from __future__ import annotations

from typing import Literal

PenaltyStep = Literal["gradient", "proximal"]
Fisher = Literal["exact", "sampled", "empirical", "batched"]
MASVariant = Literal["global", "local", "batched"]
Clamped = Literal["sum", "experience"]
DrawsFrom = Literal["all", "past"]
JoinedBy = Literal["minibatch", "loss"]
ReplayLabels = Literal["hard", "soft", "asked"]
NewShare = Literal["experiences", "classes"]
ImageLikelihood = Literal["bernoulli", "gaussian"]
Architecture = Literal["mlp", "conv"]
Covariance = Literal["shared", "diagonal"]
