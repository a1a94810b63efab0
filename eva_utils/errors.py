"""The one exception that means: what the user gave is wrong, and here is what would be right."""


class InputError(ValueError):
    """Something given from outside (an argument, a file, a folder) cannot be used.

    The message names the thing, its value and what would be right. The command line prints it alone,
    without a traceback, and exits with status 2.
    """
