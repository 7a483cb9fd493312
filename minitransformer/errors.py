"""Errors whose message is meant for the person at the keyboard: the command line prints it as one line."""


class InputError(ValueError):
    """Something that was given cannot be used: says what was wrong, what was expected, how to mend it."""


class DeviceError(RuntimeError):
    """The device asked for cannot be used."""


class DivergedError(ArithmeticError):
    """Training reached a loss or a gradient that is not a finite number."""
