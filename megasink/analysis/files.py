"""Files that are there whole or not at all."""

import os
from pathlib import Path

from megasink.errors import UserError


def write_whole(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` through a temporary file in the same folder; raises UserError if that is impossible."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
    finally:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None


def check_writable(folder: Path) -> None:
    """Raise UserError now rather than after the measurement if nothing can be written to `folder`."""
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written to ({error.strerror}); choose another folder") from None
