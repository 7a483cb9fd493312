"""Files that are either whole or not there."""

import contextlib
import json
import os
import secrets
from pathlib import Path

from minitransformer.errors import InputError


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside ``path``; when the block ends well, it takes the place of ``path``.

    Whatever happens within the block (a full disk, Ctrl-C, a crash), ``path`` keeps its old content.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make private files
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path):
    """Return the JSON object in the file ``path``; raise InputError if there is none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def write_json(path, value):
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
