"""The one exception that means: the user asked for something that cannot be done."""


class UserError(ValueError):
    """A mistake of the user's, told in one line: what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """
