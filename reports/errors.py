"""The base of every error that the user can mend."""


class UserError(Exception):
    """Something that the user can mend; the message is one line that says what is wrong and what to do."""
