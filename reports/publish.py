"""The generated pages: what records and studies say, as Markdown files that link to each other and to the pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from engrams.reports import pages, render
from engrams.reports.errors import UserError
from engrams.reports.files import replace_file
from engrams.reports.pages import comparison
from engrams.reports.parity import tables
from engrams.reports.parity.board import Board, Duel
from engrams.reports.render import Sheet
from engrams.reports.store import Record

GENERATED = "<!-- Made by 'engrams pages' from the records: changes made here are lost. -->"


class NotOurs(UserError):
    """A page would take the place of somebody's own file; the message is one line."""


class Described(NamedTuple):
    """A protocol as its page has it, besides its records."""

    title: str
    settings: str
    """The protocol as TOML, with its sources and what was chosen."""


class StudyPage(NamedTuple):
    """A study as its page has it."""

    name: str
    sheets: Sequence[Sheet]
    legend: str
    figure: Path
    source: str
    finding: str


def page_of(protocol: str) -> str:
    """Returns the name of a protocol's file."""
    return f"{protocol.replace('/', '-')}.md"


def protocol_page(
    name: str,
    described: Described | None,
    records: Sequence[Record],
    stream: Path | None,
    pictures: Mapping[str, str],
) -> str:
    """Returns the page of a protocol: its tables, accuracy along the stream, what generators made, its settings.

    Args:
        name: of the protocol.
        described: None where the protocol is not known here; its page then has no settings.
        records: of this protocol.
        stream: path from the page of the picture of accuracy along the stream, if there is one.
        pictures: run -> path from the page of what it generated.
    """
    parts = [f"# {name}", GENERATED]
    if described:
        parts.append(f"{described.title}.")
    parts.append(pages.markdown(records).rstrip())
    if stream:
        parts += ["## Along the stream", f"![accuracy on the experiences learned so far]({stream.as_posix()})"]
    if pictures:
        parts.append("## What was generated")
        parts += [f"`{run}`\n\n![images of {run}]({path})" for run, path in pictures.items()]
    if described:
        parts += ["## Settings and sources", f"```toml\n{described.settings.rstrip()}\n```"]
    return _joined(parts)


def parity_page(boards: Sequence[Board], duels: Sequence[Duel]) -> str:
    """Returns the page of published figures beside ours, with what is known of where ours is short."""
    findings = "\n".join(f"- {finding}" for board in boards for finding in board.findings)
    board = tables.as_markdown(boards, duels).rstrip()
    return _joined(["# Beside published figures", GENERATED, board, "## Where ours is short", findings])


def studies_page(studies: Iterable[StudyPage], out: Path) -> str:
    """Returns the page of all studies; ``out`` is the folder that the page will lie in."""
    parts = ["# Studies", GENERATED]
    for study in studies:
        parts += [f"## {study.name}", study.finding, f"`engrams study {study.name}`"]
        parts.append(f"![figure of {study.name}]({linked(study.figure, out)})")
        parts += [render.as_markdown(study.sheets, study.legend).rstrip(), f"Where this comes from: {study.source}."]
    return _joined(parts)


def index(protocols: Iterable[tuple[str, str]], others: Iterable[tuple[str, str]]) -> str:
    """Returns the list of all pages.

    Args:
        protocols: (name, what it is).
        others: (name of the file without its ending, what it is).
    """
    lines = [f"- [{name}]({page_of(name)}): {title}" for name, title in protocols]
    lines += [f"- [{name}]({name}.md): {title}" for name, title in others]
    return _joined(["# Results", GENERATED, "\n".join(lines)])


def overview(records: Iterable[Record], protocols: Sequence[str], strategies: Sequence[str]) -> Sheet:
    """Returns a table of ACC, a row a strategy and a column a protocol; empty where there are no runs.

    Args:
        records: of any number of protocols and strategies.
        protocols: the columns.
        strategies: the rows, as tables name them.
    """
    acc: dict[tuple[str, str], str] = {}
    names: dict[str, str] = {}
    for row in comparison.compare(records):
        if "ACC" in row.metrics:
            acc[row.strategy, row.protocol] = row.metrics["ACC"].percent()
            names[row.strategy] = row.strategy + (" ‡" if row.upper_bound else "")
    rows = [
        {"strategy": names[one], **{protocol: acc.get((one, protocol), "") for protocol in protocols}}
        for one in strategies
        if one in names
    ]
    return Sheet("", rows)


def write(folder: Path, made: Mapping[str, str]) -> None:
    """Writes pages, each whole or not at all, and removes those that an earlier call made and this one did not.

    Files of anybody else stay.

    Args:
        folder: of the pages; it may not be there yet.
        made: name of the file -> page.

    Raises:
        NotOurs: one of the files is there and was not made by an earlier call; then nothing is written.
    """
    there = {path.name: GENERATED in path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.md")}
    if others := [str(folder / name) for name in made if not there.get(name, True)]:
        raise NotOurs(f"{', '.join(others)}: not made by 'engrams pages', and would be lost; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in made.items():
        replace_file(folder / name, page)
    for name, ours in there.items():
        if ours and name not in made:
            (folder / name).unlink()


def linked(path: Path, folder: Path) -> str:
    """Returns the way to a file from the pages' folder, as a link has it."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
