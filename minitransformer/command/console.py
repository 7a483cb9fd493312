"""A command as a process: its streams, the bytes of its arguments, and how it ends."""

import os
import signal
import sys
import warnings

import typer

from minitransformer.errors import DeviceError, DivergedError, InputError

SIGNALLED = 128  # plus the signal's number: how shells report it


def run(app):
    """Run ``app``; an error that concerns the user is one line on standard error, and so is a warning."""
    _open_streams()
    warnings.formatwarning = _warning_line
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        _discard(sys.stdout)
        sys.exit(1)
    except (InputError, DeviceError, DivergedError, OSError) as error:
        _end_with(error)
    except MemoryError as error:
        _end_with(f"not enough memory: {error}")
    except KeyboardInterrupt:
        sys.exit(SIGNALLED + signal.SIGINT)


def _open_streams():
    """Let output and errors lead somewhere, and take any text, even where they were closed.

    What was closed is opened at least by its number: else the next file would be taken for it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


def _warning_line(message, category, filename, lineno, line=None):
    return f"minitransformer: warning: {' '.join(str(message).split())}\n"


def _end_with(error):
    """Say in one line what went wrong, and end."""
    try:
        sys.stdout.flush()
    except OSError:  # what is left can't be written, and would be tried again at the very end
        _discard(sys.stdout)
    print(f"minitransformer: error: {error}", file=sys.stderr)
    sys.exit(1)


def _discard(stream):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def check_texts(parameter: typer.CallbackParam, values: list[str] | None):
    """Return ``values``, a list; raise InputError as ``check_text`` does."""
    return [check_text(parameter, value) for value in values or ()]


def check_text(parameter: typer.CallbackParam, value: str | None):
    """Return ``value``; raise InputError for bytes that are not UTF-8.

    Whatever the system thinks arguments are written in: it hands on bytes that it can't read as surrogates.
    """
    if value is None or not any("\ud800" <= sign <= "\udfff" for sign in value):
        return value
    try:
        return os.fsencode(value).decode("utf-8")
    except UnicodeDecodeError as error:
        option, byte = parameter.opts[0], error.object[error.start]
        raise InputError(
            f"{option if option.startswith('-') else option.upper()} is not UTF-8 text: byte 0x{byte:02x} at "
            f"offset {error.start:,} can't be decoded"
        ) from None
