"""The parity board shown: in a terminal, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from engrams.reports.pages.comparison import Estimate, by_protocol, markdown_table
from engrams.reports.parity.board import Board, Comparison, Duel, Verdict, tally

COLOURS = {Verdict.reproduced: "green", Verdict.above: "green", Verdict.short: "red", Verdict.not_run: "dim"}
LEGEND = (
    "Percentages. 'published': as the source reports it, with the standard deviation over its runs where it gives one. "
    "'ours': mean ± 95% confidence interval over seeds. 'difference': ours minus published ± its 95% confidence "
    "interval, from both spreads (Welch; a number published without a spread is taken as exact, a single seed of ours "
    "is taken to spread as the source's runs do). "
    "'reproduced': that interval holds 0, or the difference is within what the published number was rounded by; else "
    "'above' or 'short'; 'not run': no complete run here. Where the interval is wide, 'reproduced' says little; nor "
    "are the tests corrected for their number: one in twenty equal figures looks different. † not yet read in the "
    "source itself."
)


def summary(boards: Iterable[Board]) -> str:
    """``N reproduced, M above, K short, L not run``."""
    return ", ".join(f"{count} {verdict.value}" for verdict, count in tally(boards).items())


def _signed(estimate: Estimate) -> str:
    return ("+" if estimate.mean >= 0 else "") + estimate.percent()


def _cells(row: Comparison, checked: bool) -> dict[str, str]:
    reported = row.reported
    spread = "" if reported.sd is None else f" (sd {100 * reported.sd:.2f})"
    return {
        "method": row.method,
        "strategy": row.strategy,
        "published": f"{100 * reported.mean:.{reported.digits}f}{spread}{'' if checked else ' †'}",
        "ours": row.ours.percent() if row.ours else "",
        "seeds": f"{row.seeds}" + (f" ({row.failed} failed)" if row.failed else ""),
        "difference": _signed(row.difference) if row.difference else "",
        "verdict": row.verdict.value,
        "published setting": row.published_setting,
        "our setting": row.our_setting,
    }


LEFT = ("method", "strategy", "verdict", "published setting", "our setting")
WRAPPED = ("method", "strategy", "published setting", "our setting")  # so that a narrow terminal cuts no number


DUEL_LEGEND = (
    "Ours minus Avalanche's strategy of the same method, paired over the seeds that both have, ± 95% confidence "
    "interval; 'level': that interval holds 0. Stream and network are the same; each has the hyperparameters that were "
    "chosen for it, Avalanche's generative replay those of its baselines: other epochs, minibatches and a smaller VAE."
)


def _duel_cells(duel: Duel) -> dict[str, str]:
    return {
        "protocol": duel.protocol,
        "strategy": duel.strategy,
        "Avalanche's": duel.counterpart,
        "ACC": duel.ours.percent(),
        "its ACC": duel.theirs.percent(),
        "seeds": str(duel.seeds),
        "difference": _signed(duel.difference),
        "ours is": duel.verdict,
    }


DUEL_LEFT = ("protocol", "strategy", "Avalanche's", "ours is")


def duels_as_rich(duels: Iterable[Duel]) -> Table:
    """For a terminal: one row a protocol and strategy."""
    table = Table(title="ours beside Avalanche's own", title_justify="left")
    colours = {"better": "green", "level": "", "worse": "red"}
    for index, duel in enumerate(duels):
        cells = _duel_cells(duel)
        if index == 0:
            for heading in cells:
                table.add_column(heading, justify="left" if heading in DUEL_LEFT else "right")
        table.add_row(*cells.values(), style=colours[duel.verdict])
    return table


def _duels_as_markdown(duels: Sequence[Duel]) -> str:
    body = markdown_table([_duel_cells(duel) for duel in duels], DUEL_LEFT)
    return f"**Ours beside Avalanche's own**\n\n{body}\n\n{DUEL_LEGEND}"


def as_rich(boards: Iterable[Board]) -> list[Table]:
    """For a terminal: a table for each protocol of a figure, then what the source and we set for all its rows."""
    tables = []
    for board in boards:
        for protocol, rows in by_protocol(board.rows).items():
            table = Table(title=f"{protocol} beside {board.source_name}", title_justify="left")
            for heading in _cells(rows[0], board.source.checked):
                table.add_column(
                    heading,
                    justify="left" if heading in LEFT else "right",
                    no_wrap=heading not in WRAPPED,
                    overflow="fold",
                )
            for row in rows:
                cells = _cells(row, board.source.checked)
                table.add_row(
                    *(
                        Text(cell, COLOURS[row.verdict] if heading == "verdict" else "")
                        for heading, cell in cells.items()
                    ),
                    style="dim" if row.verdict is Verdict.not_run else None,
                )
            tables.append(table)
        settings = Table(
            title=f"settings of {board.source_name} and ours",
            caption=board.note or None,
            title_justify="left",
            caption_justify="left",
        )
        for heading in ("setting", "published", "ours"):
            settings.add_column(heading)
        for line in board.settings:
            settings.add_row(*map(Text, line))
        tables.append(settings)
    return tables


def as_markdown(boards: Sequence[Board], duels: Sequence[Duel] = ()) -> str:
    """The summary, then as in the terminal, then the legend and the sources."""
    parts = [f"{summary(boards)}.\n"]
    for board in boards:
        for protocol, rows in by_protocol(board.rows).items():
            body = markdown_table([_cells(row, board.source.checked) for row in rows], LEFT)
            parts.append(f"**{protocol}** beside {board.source_name}\n\n{body}\n")
        settings = pd.DataFrame(board.settings, columns=["setting", "published", "ours"])
        parts.append(settings.to_markdown(index=False, disable_numparse=True) + "\n")
        if board.note:
            parts.append(f"{board.note}\n")
    sources = {board.source_name: board.source for board in boards}
    listed = [f"- {name}: {source.title}; {source.where}" for name, source in sources.items()]
    beside_avalanche = [f"\n{_duels_as_markdown(duels)}"] if duels else []
    return "\n".join([*parts, f"{LEGEND}\n", *listed, *beside_avalanche, ""])


def as_csv(boards: Iterable[Board]) -> str:
    """One line a published number, numbers as fractions. (Ours beside Avalanche's is in the other two formats.)"""
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
            line |= {"verdict": row.verdict.value}
            line |= {"published_setting": row.published_setting, "our_setting": row.our_setting}
            line |= {
                "published_settings_of_all": "; ".join(f"{name}: {text}" for name, text, _ in board.settings if text)
            }
            line |= {"our_settings_of_all": "; ".join(f"{name}: {text}" for name, _, text in board.settings if text)}
            lines.append(line)
    return pd.DataFrame(lines).astype({"published_runs": "Int64"}).to_csv(index=False)
