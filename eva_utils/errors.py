"""The two exceptions that are told in words: wrong input, and a fault that no input could have caused."""


class InputError(ValueError):
    """Something given from outside (an argument, a file, a folder) cannot be used.

    The message names the thing, its value and what would be right. The command line prints it alone,
    without a traceback, and exits with status 2.
    """


class RunError(RuntimeError):
    """A run cannot go on, through no fault of what it was given. The command line prints it and exits with status 1."""
