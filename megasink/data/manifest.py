"""`<prefix>.json`: where a pair of token files came from, so that training refuses what does not match."""

import dataclasses
import json
import os
from pathlib import Path

from pydantic import ConfigDict

from megasink.config.cli import from_dict
from megasink.errors import UserError

SCHEMA = "megasink.tokens/1"


@dataclasses.dataclass
class Manifest:
    """What the writer knew: the tokenizer (name, SHA-256, entries, ids of BOS and EOS or None) and the counts."""

    __pydantic_config__ = ConfigDict(extra="ignore")  # a newer writer may say more

    schema: str
    tokenizer: str
    tokenizer_digest: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    prepend_bos: bool
    append_eod: bool
    documents: int
    tokens: int


def manifest_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.json")


def read_manifest(prefix: str | Path) -> Manifest | None:
    """The manifest beside `<prefix>.bin`, or None where there is none (files made by Megatron have none)."""
    path = manifest_path(prefix)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: unreadable manifest ({error}); remake the shards or remove this file") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a manifest of schema {SCHEMA}; remake the shards or remove this file")
    return from_dict(Manifest, data, str(path))


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Write `<prefix>.json` atomically."""
    path = manifest_path(prefix)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(manifest), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --output-prefix") from None
