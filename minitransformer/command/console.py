"""A command as a process: its standard streams, the encoding of its arguments, errors and exit status."""

import os
import signal
import sys
import warnings

import typer
from rich.console import Console

from minitransformer.errors import DeviceError, DivergedError, InputError
from minitransformer.system.terminal import fit_lines

SIGNALLED = 128  # plus the signal's number: how shells report it


def run(app):
    """Run ``app``; errors meant for the user, and warnings, are one line each on standard error."""
    _open_streams()
    warnings.formatwarning = _format_warning
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has closed it
        _discard(sys.stdout)
        sys.exit(1)
    except (InputError, DeviceError, DivergedError, OSError) as error:
        _exit_with(error)
    except MemoryError as error:
        _exit_with(f"not enough memory: {error}")
    except KeyboardInterrupt:
        sys.exit(SIGNALLED + signal.SIGINT)


def _open_streams():
    """Encode standard output and error as UTF-8, and replace closed standard streams by the null device.

    Otherwise the next file that is opened would get the descriptor of a closed stream, and its output.
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


def _format_warning(message, category, filename, lineno, line=None):
    return f"minitransformer: warning: {' '.join(str(message).split())}\n"


def _exit_with(error):
    """Print ``error`` in one line on standard error, and exit with status 1."""
    try:
        sys.stdout.flush()
    except OSError:  # at exit Python would try again to write what is left
        _discard(sys.stdout)
    print(f"minitransformer: error: {error}", file=sys.stderr)
    sys.exit(1)


def _discard(stream):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_lines(text, indent=0):
    """Print ``text``; on a terminal its lines are broken to fit, as ``fit_lines`` does."""
    print(fit_lines(text, Console(), indent))


def check_texts(parameter: typer.CallbackParam, values: list[str] | None):
    """Return ``values``, a list; raise InputError as ``check_text`` does."""
    return [check_text(parameter, value) for value in values or ()]


def check_text(parameter: typer.CallbackParam, value: str | None):
    """Return ``value``; raise InputError for bytes that are not UTF-8.

    Python decodes bytes of an argument that are not valid in the locale's encoding to surrogates.
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
