"""Generated parts of a Markdown file, between two marks."""

from __future__ import annotations

from pathlib import Path

from engrams.reports.errors import UserError
from engrams.reports.files import replace_file


class MarkError(UserError):
    """The file has no place for the generated part; the message is one line."""


def replace_between(path: Path, name: str, text: str) -> None:
    """Puts ``text`` between ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

    Raises:
        MarkError: there is no such file, or it lacks the marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if not path.is_file():
        raise MarkError(f"there is no file {path}")
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise MarkError(f"{path} has no place for the {name}: it needs the lines {begin} and {end}")
    replace_file(path, f"{before}{begin}\n{text.rstrip()}\n{end}{after}")
