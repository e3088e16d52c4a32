"""Files that are whole or absent."""

import os
import uuid
from pathlib import Path


def temporary_path(path: Path) -> Path:
    """A new name in the same folder (renaming is atomic only there) that no other process uses, on no other node."""
    return path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:12]}")


def write_atomic(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to disk, rename. Raises OSError; nothing is left behind then."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
