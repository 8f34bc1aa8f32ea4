"""The one exception for what a user can mend."""


class UserError(Exception):
    """Bad input with a message that says what to do.

    The command line prints the message on one line, without a traceback, and exits with status 2.
    """
