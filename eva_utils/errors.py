"""The two exceptions that are told in words: wrong input, and a fault that no input could have caused."""


class InputError(ValueError):
    """Something given from outside (an argument, a file, a folder) cannot be used.

    The message names the thing, its value and what would be right. The command line prints it alone,
    without a traceback, and exits with status 2.
    """


class RunError(RuntimeError):
    """A run cannot go on, through no fault of what it was given. The command line prints it and exits with status 1."""


def check(name: str, value, ok: bool, right: str) -> None:
    """Raises ``InputError`` unless ``ok``: "<name> is <value>; it has to be <right>"."""
    if not ok:
        raise InputError(f"{name} is {value!r}; it has to be {right}")


def check_recipe(momentum: float, weight_decay: float, label_smoothing: float, ema: float = 0.5) -> None:
    """Raises ``InputError`` unless SGD, its loss and the average can use these. (NaN fails every comparison.)"""
    check("momentum", momentum, 0 <= momentum < 1, "0 or more and below 1")
    check("ema", ema, 0 < ema <= 1, "above 0 and at most 1")
    check("weight_decay", weight_decay, 0 <= weight_decay < float("inf"), "0 or more")
    check("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "0 or more and below 1")


def differences(there: dict, here: dict) -> str:
    """A line for each setting that is not the same, for the message that refuses; "" if all are."""
    changed = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    return "\n".join(f"  {key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in changed)
