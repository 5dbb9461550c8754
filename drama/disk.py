"""Files and folders that are whole or absent, JSON, and a lock on a folder."""

import contextlib
import errno
import json
import os
import shutil
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
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does this by itself
                raise
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
def lock(folder: Path, busy: str):
    """Keep every other program that asks out of a folder. Raises UserError(busy) when one is in it.

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
                raise UserError(busy) from None
        for unfinished in folder.glob(".*.tmp"):
            unfinished.unlink()
        yield


@contextlib.contextmanager
def working_folder(path: Path, busy: str):
    """A folder of one's own to write in, removed afterwards, with what a program that was killed left in it.

    Raises UserError(busy) when another program is at work in it.
    """
    path.mkdir(parents=True, exist_ok=True)
    with lock(path, busy):
        try:
            for left in path.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name != ".lock":
                    left.unlink()
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


READY = ".ready"  # a folder within: files that are written, and are to replace others all together


def replace_files(new: Path, folder: Path):
    """Replace the files in folder by those in new, a folder on the same disk: all or none, whenever it ends.

    They are first moved to folder/.ready at once. Who finds that, by `finish_replacing`, goes on from there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finish_replacing(folder)
    new.rename(folder / READY)
    finish_replacing(folder)


def finish_replacing(folder: Path):
    """Go on with `replace_files` where it was interrupted; several programs may do so at once."""
    with contextlib.suppress(FileNotFoundError):
        for file in sorted((folder / READY).iterdir()):
            with contextlib.suppress(FileNotFoundError):  # another has moved it
                os.replace(file, folder / file.name)
        (folder / READY).rmdir()
