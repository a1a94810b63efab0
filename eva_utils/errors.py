"""The exception that is told in words, and words for it."""


class InputError(ValueError):
    """Something given from outside (an argument, a file, a folder) cannot be used.

    The message names the thing, its value and what would be right. The command line prints it alone,
    without a traceback, and exits with status 2.
    """


def check(name: str, value, ok: bool, right: str) -> None:
    """Raises ``InputError`` unless ``ok``: "<name> is <value>; it has to be <right>"."""
    if not ok:
        raise InputError(f"{name} is {value!r}; it has to be {right}")


def kind(value) -> str:
    """In words, for such messages: what class it is, and a tensor's type and shape; of a tuple, each part."""
    if type(value) in (tuple, list):
        return f"({', '.join(map(kind, value[:4]))})"
    said = (getattr(value, "dtype", ""), tuple(getattr(value, "shape", ())))
    return " ".join([type(value).__name__, *(str(part) for part in said if part)])


def first_line(error: BaseException) -> str:
    """What went wrong, without the rest that torch and the system add."""
    return getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
