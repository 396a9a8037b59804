"""At which revision the code is that decides results; records say at which it was.

A revision is raised by one with a change after which the same seed ends in another record.
"""

from __future__ import annotations

from engrams.strategies.catalogue import CATALOGUE
from engrams.strategies.contract import Strategy

CLASSIFIER = "classifier"
"""In a record, the part that judges generated images."""
CLASSIFIER_REVISION = 1
"""Of the code of ``judging/real_classifier.py``, which what is kept of it was made by, too."""


def revisions_of(strategy: Strategy) -> dict[str, int]:
    """Returns part of the code -> revision, of all that a record of a strategy depends on.

    An own strategy is not among them: its record keeps a fingerprint of its file and what it imports.
    """
    found = {part.name: part.revision for part in strategy.parts or (strategy,) if part.name in CATALOGUE}
    return found | ({CLASSIFIER: CLASSIFIER_REVISION} if strategy.needs_images else {})


def present() -> dict[str, int]:
    """Returns part of the code -> revision, of everything."""
    return {name: listed.revision for name, listed in CATALOGUE.items()} | {CLASSIFIER: CLASSIFIER_REVISION}
