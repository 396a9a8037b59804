"""The results on the pages of methods: what records say of the strategies that a page names, filled in."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from engrams.reports import marks, publish, render
from engrams.reports.estimates import Estimate
from engrams.reports.marks import MarkError
from engrams.reports.pages.comparison import complete_by_row
from engrams.reports.parity import tables
from engrams.reports.parity.board import Board
from engrams.reports.render import Sheet
from engrams.reports.store import Record

REFERENCES = ("naive", "replay", "joint")
"""They are run under every protocol: what else has been run decides which protocols a page shows."""


def fill(path: Path, records: Sequence[Record], boards: Sequence[Board]) -> None:
    """Writes the tables of a page anew: ACC by protocol, published figures beside ours, and what options do.

    The page names its strategies in ``<!-- strategies: NAME ... -->``, and has the marks of ``results`` and
    ``published``; those of ``options`` where records have others than a protocol's own settings.

    Raises:
        MarkError: it lacks one of them.
        RecordError: as :func:`engrams.reports.pages.comparison.compare`.
    """
    named = re.search(r"<!-- strategies: (.+?) -->", path.read_text(encoding="utf-8"))
    if not named:
        raise MarkError(f"{path} does not say whose results it has: it needs a line <!-- strategies: NAME ... -->")
    strategies = named[1].split()
    own = {one.protocol for one in records if one.row in strategies and one.row not in REFERENCES}
    found = publish.overview(records, sorted(own), strategies)
    marks.replace_between(path, "results", _shown([found], "There are no runs of them."))
    marks.replace_between(path, "published", _shown([_published(boards, strategies, own)], "There are none."))
    if options := _options(records, strategies):
        marks.replace_between(path, "options", _shown([Sheet("", options, left=("protocol", "strategy", "set"))], ""))


def _published(boards: Sequence[Board], strategies: Sequence[str], protocols: Collection[str]) -> Sheet:
    """Returns the figures that ours stand beside in these protocols; where ours stand beside none, all there are."""
    figures = [(board, row) for board in boards for row in board.rows if row.strategy in strategies]
    beside = [(board, row) for board, row in figures if row.ours is not None and row.protocol in protocols]
    rows = [
        {
            "source": board.source_name,
            "protocol": row.protocol,
            "method": row.method,
            "strategy": row.strategy,
            "published": f"{100 * row.reported.mean:.{row.reported.digits}f}",
            "ours": row.ours.percent() if row.ours else "",
            "difference": tables.signed(row.difference) if row.difference else "",
            "verdict": row.verdict.value,
        }
        for board, row in beside or figures
    ]
    return Sheet("", rows, left=("source", "protocol", "method", "strategy", "verdict"))


def _options(records: Sequence[Record], strategies: Sequence[str]) -> list[dict[str, str]]:
    """Returns a row for each setting that is not the protocol's own, below the one that is."""
    own = set(strategies).difference(REFERENCES)
    set_by_hand = {(one.protocol, one.strategy) for one in records if one.variant and one.strategy in own}
    by_row = complete_by_row(one for one in records if (one.protocol, one.strategy) in set_by_hand)
    groups = [(seeds[0], seeds) for seeds in by_row.values()]
    groups.sort(key=lambda group: (group[0].protocol, strategies.index(group[0].strategy), group[0].variant))
    return [
        {
            "protocol": one.protocol,
            "strategy": one.strategy,
            "set": one.variant or "as the protocol has it",
            "ACC": Estimate.of([record.acc for record in seeds]).percent(),
            "seeds": str(len(seeds)),
        }
        for one, seeds in groups
    ]


def _shown(sheets: Sequence[Sheet], otherwise: str) -> str:
    return render.as_markdown(sheets, "") or otherwise
