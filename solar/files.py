"""Files that several processes share: written whole or not at all, and made by one of them."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from solar.errors import SolarError


def write_whole(path: str | Path, data: bytes) -> Path:
    """Writes ``data`` under a temporary name in the same folder, syncs it, and renames it to
    ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def refuse_to_replace(path: Path) -> None:
    """Raises SolarError where `path` is a folder, or a device or pipe: a file of its name would
    take its place."""
    if path.is_dir():
        raise SolarError(f"{path} is a directory; give the name of a file to write")
    if path.exists() and not path.is_file():
        raise SolarError(f"{path} is no regular file; give the name of a file to write")


def replace_whole(fresh: Path, path: Path, old: Path) -> None:
    """Renames the folder ``fresh`` to ``path``; what was there goes to ``old``, and back again
    where that fails.
    """
    try:
        if os.path.lexists(path):
            path.rename(old)
        fresh.rename(path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        raise


@contextlib.contextmanager
def only_one(path: str | Path, waiting: str | None) -> Iterator[bool]:
    """Holds the right to make ``path``, which one process has at a time; it ends with the process.

    Where another has it, this waits and says ``waiting`` once on stderr, and the caller looks again
    whether ``path`` is still to be made. With None it does not wait: it gives False.
    """
    from filelock import FileLock, Timeout  # most commands make nothing that others would want

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            yield False
            return
        print(waiting, file=sys.stderr, flush=True)
        lock.acquire(poll_interval=0.2)
    try:
        yield True
    finally:
        lock.release()
