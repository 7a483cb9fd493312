"""The command ``minitransformer``, and ``python -m minitransformer``."""

import os
import signal
import sys


def main():
    """Run the command line, with OpenBLAS's idle threads asleep.

    They spin otherwise, for a tenth of a second, and where anything else wants a core every product of a
    definition then waits for them. OpenBLAS reads this while NumPy is loaded, so it comes before all else.
    The value is the logarithm of the cycles to spin.
    """
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    try:
        from minitransformer.command.app import main as command_line  # noqa: PLC0415
    except KeyboardInterrupt:  # while NumPy and others are loaded
        sys.exit(128 + signal.SIGINT)
    command_line()


if __name__ == "__main__":
    main()
