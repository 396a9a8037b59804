"""The parity board shown: in a terminal, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from engrams.reports import render
from engrams.reports.estimates import Estimate
from engrams.reports.pages.comparison import by_protocol
from engrams.reports.parity.board import Board, Comparison, Duel, Verdict, tally
from engrams.reports.render import Sheet

COLOURS = {
    Verdict.reproduced: "green",
    Verdict.above: "green",
    Verdict.short: "red",
    Verdict.undecided: "yellow",
    Verdict.failed: "red",
    Verdict.not_run: "dim",
}
LEGEND = (
    "Percentages. 'published': as the source reports it, with the standard deviation over its runs where it gives one. "
    "'ours': mean ± 95% confidence interval over seeds. 'difference': ours minus published ± its 95% confidence "
    "interval, from both spreads (Welch). Where only one side has a spread, the runs of the other are taken to spread "
    "likewise; a number published without a spread is taken as the mean of as many runs as the source says, or else as "
    "one run. "
    "'reproduced': the difference is shown to be small, its 90% interval and what the published number was rounded by "
    "lie within a point (two one-sided tests at 5%). Else 'above' or 'short': the 95% interval lies beyond 0, and "
    "beyond what the published number was rounded by; 'undecided': neither is shown, with what would show that there "
    "is no difference if there is none: so many seeds of ours that spread as these do; 'more seeds', since a single "
    "one is never decided; or what of the source no seeds of ours make up for: that its own runs spread too much ('its "
    "spread'), or that there are too few of them and their spread is not known ('its one run', 'its 5 runs'). "
    "'failed': no run here came to an end; 'not run': there is none. The tests are not corrected for their number: one "
    "in twenty equal figures looks different. † not yet read in the source itself."
)


def summary(boards: Iterable[Board]) -> str:
    """Returns ``N reproduced, M above, K short, U undecided, F failed, L not run``."""
    return ", ".join(f"{count} {verdict.value}" for verdict, count in tally(boards).items())


def signed(estimate: Estimate) -> str:
    """Returns a difference as a percentage with its sign and interval."""
    return ("+" if estimate.mean >= 0 else "") + estimate.percent()


def verdict_of(row: Comparison) -> str:
    """Returns the verdict, with what would decide it in brackets where it is undecided."""
    return f"{row.verdict.value} ({row.to_decide})" if row.to_decide else row.verdict.value


def _cells(row: Comparison, checked: bool) -> dict[str, str | Text]:
    reported = row.reported
    spread = "" if reported.sd is None else f" (sd {100 * reported.sd:.2f})"
    return {
        "method": row.method,
        "strategy": row.strategy,
        "published": f"{100 * reported.mean:.{reported.digits}f}{spread}{'' if checked else ' †'}",
        "ours": row.ours.percent() if row.ours else "",
        "seeds": f"{row.seeds}" + (f" ({row.failed} failed)" if row.failed else ""),
        "difference": signed(row.difference) if row.difference else "",
        "verdict": Text(verdict_of(row), COLOURS[row.verdict]),
        "published setting": row.published_setting,
        "our setting": row.our_setting,
    }


DUEL_LEGEND = (
    "Ours minus Avalanche's strategy of the same method, paired over the seeds that both have, ± 95% confidence "
    "interval; 'level': that interval holds 0. Stream and network are the same; each has the hyperparameters that were "
    "chosen for it, Avalanche's generative replay those of its baselines: other epochs, minibatches and a smaller VAE."
)


def sheets(boards: Iterable[Board]) -> list[Sheet]:
    """Returns a table for each protocol of a figure, then what the source and we set for all its rows."""
    return [sheet for board in boards for sheet in _of_board(board)]


def _of_board(board: Board) -> list[Sheet]:
    found = [
        Sheet(
            f"{protocol} beside {board.source_name}",
            [_cells(row, board.source.checked) for row in rows],
            left=("method", "strategy", "verdict", "published setting", "our setting"),
            words=("method", "published setting", "our setting"),
            spare=("our setting", "published setting", "seeds", "difference", "published", "ours"),
            styles=["dim" if row.verdict is Verdict.not_run else None for row in rows],
        )
        for protocol, rows in by_protocol(board.rows).items()
    ]
    headings = ("setting", "published", "ours")
    settings = [dict(zip(headings, line, strict=True)) for line in board.settings]
    title = f"settings of {board.source_name} and ours"
    return [*found, Sheet(title, settings, headings, words=headings, note=board.note)] if settings else found


def duel_sheets(duels: Iterable[Duel]) -> list[Sheet]:
    """Returns a table a protocol, ours beside Avalanche's own."""
    colours = {"better": "green", "level": None, "worse": "red"}
    return [
        Sheet(
            f"{protocol}: ours beside Avalanche's own",
            [_duel_cells(duel) for duel in group],
            left=("strategy", "Avalanche's", "ours is"),
            spare=("seeds", "difference", "its ACC"),
            styles=[colours[duel.verdict] for duel in group],
        )
        for protocol, group in by_protocol(duels).items()
    ]


def _duel_cells(duel: Duel) -> dict[str, str]:
    return {
        "strategy": duel.strategy,
        "Avalanche's": duel.counterpart,
        "ACC": duel.ours.percent(),
        "its ACC": duel.theirs.percent(),
        "seeds": str(duel.seeds),
        "difference": signed(duel.difference),
        "ours is": duel.verdict,
    }


def as_markdown(boards: Sequence[Board], duels: Sequence[Duel] = ()) -> str:
    """Returns the summary, then as in the terminal, then the legend and the sources."""
    sources = {board.source_name: board.source for board in boards}
    listed = "\n".join(f"- {name}: {source.title}; {source.where}" for name, source in sources.items())
    parts = [
        f"{summary(boards)}.",
        render.as_markdown(sheets(boards), LEGEND).rstrip(),
        listed,
        render.as_markdown(duel_sheets(duels), DUEL_LEGEND).rstrip(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(boards: Iterable[Board]) -> str:
    """One line a published number, numbers as fractions. (Ours beside Avalanche's is in the other two formats.)"""
    import pandas as pd  # here: a board in the terminal does without, and comes sooner

    lines = []
    for board in boards:
        for row in board.rows:
            line: dict[str, object] = {"source": board.source_name, "checked": board.source.checked}
            line |= {"metric": board.source.metric, "protocol": row.protocol, "method": row.method}
            line |= {"strategy": row.strategy, "published": row.reported.mean, "published_sd": row.reported.sd}
            line |= {"published_runs": row.reported.runs, "ours": row.ours.mean if row.ours else None}
            line |= {"ours_half_width": row.ours.half_width if row.ours else None}
            line |= {"seeds": row.seeds, "failed": row.failed}
            line |= {"difference": row.difference.mean if row.difference else None}
            line |= {"difference_half_width": row.difference.half_width if row.difference else None}
            line |= {"verdict": row.verdict.value, "to_decide": row.to_decide}
            line |= {"published_setting": row.published_setting, "our_setting": row.our_setting}
            line |= {
                "published_settings_of_all": "; ".join(f"{name}: {text}" for name, text, _ in board.settings if text)
            }
            line |= {"our_settings_of_all": "; ".join(f"{name}: {text}" for name, _, text in board.settings if text)}
            lines.append(line)
    return pd.DataFrame(lines).astype({"published_runs": "Int64"}).to_csv(index=False)
