"""The base of every error that the user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something that the user can mend; the message is one line that says what is wrong and what to do."""

    def __str__(self) -> str:
        """Returns the message; what it quotes of a file or a command line breaks no line and steers no terminal."""
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in super().__str__())


def near_or(otherwise: str, name: str, known: Iterable[str]) -> str:
    """Returns "did you mean ...?" if one of the known names is near, and else what else to say."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise
