"""Files that are whole or absent, JSON, and a lock on a folder."""

import contextlib
import errno
import json
import os
from pathlib import Path

from configurator import UserError


def write_atomically(path: Path, write):
    """Call write(file) on a new binary file in path's folder; rename it to path once it is safely on disk.

    A crash at any moment leaves the old file or the new one, whole. Raises OSError, with nothing left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is only durable once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises UserError for anything else, OSError where it cannot be read."""
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(f"{path} is not JSON") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


@contextlib.contextmanager
def lock(folder: Path):
    """Keep every other training out of a folder. Raises UserError when one is in it.

    The operating system releases the lock when the process ends, however it ends. What one that was killed
    left half written is removed.
    """
    with open(folder / ".lock", "w") as f:
        try:
            if os.name == "posix":
                import fcntl

                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                import msvcrt

                msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as e:
            if e.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):  # else a disk that has no locks
                advice = "wait for it, stop it, or give another --out_dir"
                raise UserError(f"another training is writing to {folder}: {advice}") from None
        for unfinished in folder.glob(".*.tmp"):
            unfinished.unlink()
        yield
