"""The one exception that users see as a single line: what is wrong, and what to do."""


class OpenmaiError(Exception):
    """A problem with input, configuration or environment that the user can mend.

    The message names the thing, what was found, and the remedy; the command line prints it as one line and exits with status 1.
    """
