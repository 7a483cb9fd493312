"""A busy process: ``python -m bench.spinner PARENT``, started by ``bench.busy``.

It keeps a processor busy until it is killed, or until its parent, the process PARENT, has ended.
"""

import os
import sys


def spin(parent):
    """Spin while the process ``parent`` runs."""
    print("spinning", flush=True)
    while os.getppid() == parent:
        for _ in range(1_000_000):
            pass


if __name__ == "__main__":
    spin(int(sys.argv[1]))
