"""Errors whose message is meant for the person at the keyboard: the command line prints it as one line."""


class InputError(ValueError):
    """Something that was given cannot be used: says what was wrong, what was expected, how to mend it."""


class UnknownSettingError(InputError, TypeError):
    """There is no setting of this name; a TypeError too, as Python raises for an unexpected keyword."""


class ChangedSettingError(InputError):
    """A run cannot be continued with another value of this setting."""


class DeviceError(RuntimeError):
    """The device asked for cannot be used."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop by ``signal`` (Ctrl-C, SIGTERM), and has saved where it is in ``folder``.

    That is None if nothing had been trained.
    """

    def __init__(self, signal, folder=None):
        kept = "nothing was trained yet" if folder is None else f"{folder} holds the last checkpoint"
        super().__init__(f"stopped by signal {signal}; {kept}")
        self.signal, self.folder = signal, folder

    def __reduce__(self):
        """An error that another process raised arrives as it was."""
        return type(self), (self.signal, self.folder)


class DivergedError(ArithmeticError):
    """Training reached a loss or a gradient that is not a finite number."""
