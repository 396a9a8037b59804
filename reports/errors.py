"""Errors that the user can mend, and how they are said."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something that the user can mend; the message is one line that says what is wrong and what to do."""

    def __str__(self) -> str:
        """Returns the message; what it quotes of a file or a command line breaks no line and steers no terminal."""
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process gets the message: what it was made of may be more than that, or cannot be sent.
        return Exception.__new__, (type(self), *self.args)


def near_or(otherwise: str, name: str, known: Iterable[str]) -> str:
    """Returns "did you mean ...?" if one of the known names is near, and else what else to say."""
    by_small_letters = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), by_small_letters, n=1)
    near = near or [one for one in by_small_letters if name.lower() in one.split("-")]  # lwf: avalanche-lwf
    return f"did you mean {by_small_letters[near[0]]!r}?" if len(near) == 1 else otherwise


def without_paths(text: str) -> str:
    """Returns a text with the last two parts of every absolute path in it, which say nothing of this machine."""
    for known in sorted({str(Path.cwd()), str(Path.home())} - {"/"}, key=len, reverse=True):
        text = text.replace(known + "/", "/…/")  # they may have spaces
    text = re.sub(r'(?<=File ")[^"\n]+(?=")', lambda found: _short(found[0]), text)
    return re.sub(r"(?<![\w/:.…])/(?:[^\s/:\"',;()]+/)+[^\s/:\"',;()]*", lambda found: _short(found[0]), text)


def _short(path: str) -> str:
    parts = [part for part in path.split("/") if part and part != "…"]
    return "/".join(["…", *parts[-2:]]) if path.startswith(("/", "…")) else path
