"""The local report, written: templates filled, the charts' library within the page, pictures beside it.

Everything a protocol's charts need is JSON within the page; what is shown of single runs is compressed, and unpacked
when somebody opens it.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from engrams.reports.errors import UserError
from engrams.reports.files import replace_file
from engrams.reports.local import contents
from engrams.reports.local.contents import Section
from engrams.reports.pages import comparison
from engrams.reports.parity import tables
from engrams.reports.parity.board import Board, Duel
from engrams.reports.predictions import PREDICTIONS, predictions_of
from engrams.reports.store import Record, RecordError, paths_below, read

TEMPLATES = Path(__file__).parent / "templates"
PAGE, PICTURES = "index.html", "engrams-pictures"
MADE = ("generated.png", "generated.gif", "nearest.png")
"""What a run with a generator leaves beside its record."""
Identity = tuple[str, str, str, int]


class ReportError(UserError):
    """The report cannot be written; the message is one line."""


def write(
    records: Sequence[Record],
    out: Path,
    titles: Mapping[str, str],
    boards: Sequence[Board],
    duels: Sequence[Duel],
    folders: Sequence[Path] = (),
    remarks: Sequence[str] = (),
) -> Path:
    """Writes the report and returns the page.

    Args:
        records: of any number of protocols, strategies and seeds.
        out: the report's folder; a report that is there already is replaced.
        titles: protocol -> what it is, where that is known.
        boards: published figures beside ours.
        duels: Avalanche's strategies beside ours.
        folders: where the records were read, for the pictures that lie beside them.
        remarks: what readers have to know of the records, a line each.

    Raises:
        RecordError: the records cannot be compared, as :func:`engrams.reports.pages.comparison.compare`.
        ReportError: the folder cannot be written to.
    """
    found = contents.sections(records, titles)
    try:
        out.mkdir(parents=True, exist_ok=True)
        beside = _beside(folders)
        pictures, answered = _copied(beside, out), _answered(beside)
        text = (
            _environment()
            .get_template("report.html")
            .render(
                sections=found,
                data=[_data(section, pictures, answered) for section in found],
                boards=boards,
                published=tables.summary(boards),
                published_legend=tables.LEGEND,
                published_csv=tables.as_csv(boards) if boards else "",
                duels=duels,
                duels_legend=tables.DUEL_LEGEND,
                duels_data=[asdict(duel) for duel in duels],
                failed=contents.failures(found),
                remarks=remarks,
                runs=sum(len(group) for section in found for group in section.runs.values()),
                csv=comparison.as_csv([row for section in found for row in section.rows]),
                legend=comparison.LEGEND,
                plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
            )
        )
        replace_file(out / PAGE, text)
    except OSError as error:
        raise ReportError(f"the report cannot be written to {out}: {error}") from error
    return out / PAGE


def _data(
    section: Section, pictures: Mapping[Identity, list[str]], answered: Mapping[Identity, Path]
) -> dict[str, Any]:
    """What the page's script needs of a protocol; the runs of each strategy are packed."""
    return {
        "protocol": section.protocol,
        "lines": [asdict(line) for line in section.lines],
        "runs": {
            strategy: packed([_run(one, pictures, answered, section.own_file) for one in group])
            for strategy, group in section.runs.items()
        },
        "pictured": sorted({run.row for group in section.runs.values() for run in group if _identity(run) in pictures}),
        "csv": comparison.as_csv(section.rows),
        "latex": comparison.as_latex(section.rows),
    }


def _run(
    record: Record, pictures: Mapping[Identity, list[str]], answered: Mapping[Identity, Path], own_file: bool
) -> dict[str, Any]:
    """What is shown of a run; answers that cannot be used are left out, with a warning."""
    identity, found = _identity(record), None
    if identity in answered:
        try:
            found = predictions_of(record, answered[identity].parent)
        except RecordError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return contents.run(record, pictures.get(identity, ()), found, own_file)


def packed(value: object) -> str:
    """Returns JSON, compressed by zlib, as base64: a browser's ``DecompressionStream('deflate')`` reads it."""
    return b64encode(zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 9)).decode()


def _identity(record: Record) -> Identity:
    return record.protocol, record.strategy, record.variant, record.seed


def _copied(beside: Mapping[Identity, Sequence[Path]], out: Path) -> dict[Identity, list[str]]:
    """Copies the pictures beside records into the report; returns their paths from the page, by run."""
    shutil.rmtree(out / PICTURES, ignore_errors=True)
    copied: dict[Identity, list[str]] = {}
    for identity, paths in beside.items():
        for path in paths:
            if path.name in MADE:
                target = out / PICTURES / f"{sum(map(len, copied.values()))}{path.suffix}"
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
                copied.setdefault(identity, []).append(target.relative_to(out).as_posix())
    return copied


def _answered(beside: Mapping[Identity, Sequence[Path]]) -> dict[Identity, Path]:
    """Where the answers of runs lie, by run."""
    return {identity: path for identity, paths in beside.items() for path in paths if path.name == PREDICTIONS}


def _beside(folders: Sequence[Path]) -> dict[Identity, list[Path]]:
    """What lies beside each record that the page shows; a record beside nothing is not read again."""
    found: dict[Identity, list[Path]] = {}
    for folder in folders:
        for path in sorted(paths_below(folder)):
            paths = [path.with_name(name) for name in (*MADE, PREDICTIONS) if path.with_name(name).exists()]
            if not paths:
                continue
            try:
                record = read(path)
            except RecordError:
                continue  # it is named where records are read
            if len(folders) > 1:  # as :func:`engrams.reports.store.read_records` marks it
                record = record.model_copy(update={"variant": f"{record.variant} ({folder})".strip()})
            found.setdefault(_identity(record), []).extend(paths)
    return found


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = _as_json
    environment.filters["percent"] = lambda value: f"{100 * value:.2f}"
    environment.globals["headings"] = comparison.HEADINGS
    environment.globals["file"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    return environment


def _as_json(value: object) -> Markup:
    """JSON that may stand in a script element: nothing in it ends one."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))
