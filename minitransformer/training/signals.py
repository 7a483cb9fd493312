"""Ctrl-C and SIGTERM during training: after the first the step is completed, the second acts immediately."""

import contextlib
import os
import signal
import threading


@contextlib.contextmanager
def catch_signals(on_signal):
    """Within the block call ``on_signal(number)`` at the first SIGINT or SIGTERM, instead of its handler.

    From then on, and after the block, the earlier handlers apply again. Signals that were ignored stay
    ignored. Outside of the main thread, where Python cannot handle signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number, frame):
        restore()
        on_signal(number)
        with contextlib.suppress(OSError):  # standard error may be closed
            os.write(2, b"\nstopping after this step; a second signal stops immediately\n")

    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    caught = [number for number, handler in earlier.items() if handler not in (signal.SIG_IGN, None)]

    def restore():
        for number in caught:
            signal.signal(number, earlier[number])

    for number in caught:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
