"""The base of every error that the user can mend."""


class UserError(Exception):
    """Something that the user can mend; the message is one line that says what is wrong and what to do."""

    def __str__(self) -> str:
        """Returns the message; what it quotes of a file or a command line breaks no line and steers no terminal."""
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in super().__str__())
