"""Writing a file whole or not at all, as everything must be that another process will read."""

import os
import tempfile
from pathlib import Path


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
