"""The one exception for mistakes that a user can correct."""


class UserError(Exception):
    """A mistake of the user: a wrong option, file or combination. Its message is one line that says what to do.

    The command line prints the message without a traceback and exits with status 2.
    """
