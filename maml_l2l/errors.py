"""The one error type that a user's mistake or a user's machine raises."""


class UserError(Exception):
    """Something the user can mend: the message says what was expected, what was found and what to do.

    Commands print it as one `error: ...` line and leave with exit status 2, without a traceback.
    """
