"""`manifest.json`, the last file of a checkpoint: name, size and XXH3 digest of all others.

The digest finds damage; whoever can change a file can change the manifest too. XXH3 (128 bits) reads 5 GB/s on a core,
SHA-256 1.5 at best, and a 1.2B checkpoint has 19 GB.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import BinaryIO

import xxhash

from megasink.errors import UserError

MANIFEST_FILE = "manifest.json"
SCHEMA = "megasink.checkpoint/2"

Entries = dict[str, dict[str, int | str]]
"""File name -> {"size": bytes, "xxh3_128": hex digits}."""


def describe_file(path: Path) -> dict[str, int | str]:
    """Size and digest of a file that was just written, which is on the disk when this returns."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        digest = _digest(file)
        return {"size": file.tell(), "xxh3_128": digest}


def _digest(file: BinaryIO) -> str:
    return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def write_manifest(checkpoint: Path, entries: Entries) -> None:
    """Last of all files; on the disk when this returns."""
    temporary = checkpoint / f".{MANIFEST_FILE}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"schema": SCHEMA, "files": dict(sorted(entries.items()))}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, checkpoint / MANIFEST_FILE)
    sync_folder(checkpoint)


def sync_folder(folder: Path) -> None:
    """The names in a folder are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_entries(checkpoint: Path) -> Entries | None:
    """None without a readable manifest."""
    try:
        stored = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
        files = stored["files"].items()
        return {str(name): {"size": int(e["size"]), "xxh3_128": str(e["xxh3_128"])} for name, e in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_damage(checkpoint: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None. Digests are computed of every `parts`-th file only, from `part` on.

    A .pt file that the manifest does not name counts as damage: DeepSpeed would unpickle it.
    """
    entries = read_entries(checkpoint)
    if entries is None:
        return "no readable manifest, so it was not written to its end"
    for name, entry in entries.items():
        path = checkpoint / os.path.basename(name)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
    strange = sorted({path.name for path in checkpoint.glob("*.pt")} - entries.keys())
    if strange:
        return f"{strange[0]} is not in the manifest"
    for name in sorted(entries)[part::parts]:
        damage = _find_change(checkpoint / os.path.basename(name), entries[name]["xxh3_128"])
        if damage is not None:
            return damage
    return None


def check_weights(checkpoint: Path) -> None:
    """Raises UserError if weights are not as they were written.

    For tools: a checkpoint may come to them without DeepSpeed's files, or with another tokenizer in its config.yaml.
    Without a manifest, as in a converted checkpoint, nothing is compared; readers name missing files themselves.
    """
    for name, entry in sorted((read_entries(checkpoint) or {}).items()):
        path = checkpoint / os.path.basename(name)
        if path.name.endswith((".safetensors", ".safetensors.index.json")) and path.is_file():
            damage = _find_change(path, entry["xxh3_128"])
            if damage is not None:
                raise UserError(f"{checkpoint} is damaged ({damage}); use another, or copy the file again")


def _find_change(path: Path, digest: str) -> str | None:
    try:
        with open(path, "rb") as file:
            found = _digest(file)
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return None if found == digest else f"{path.name} has changed since it was written (its digest differs)"
