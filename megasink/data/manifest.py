"""`<prefix>.json`: where a pair of token files came from, so that training refuses what does not match."""

import dataclasses
import json
from pathlib import Path

from pydantic import ConfigDict

from megasink.config.cli import from_dict
from megasink.data.atomic import write_atomic
from megasink.errors import UserError

SCHEMA = "megasink.tokens/1"
_HEAD = b'{\n "schema": "megasink.tokens/'  # tells a manifest from other JSON without reading a file of any size


@dataclasses.dataclass
class Manifest:
    """What the writer knew.

    Attributes:
        tokenizer, tokenizer_digest: where it was, and the SHA-256 of its file.
        vocab_size, bos_id, eos_id: of the tokenizer; None where it has no such token.
        prepend_bos, append_eod: what surrounds each document.
        documents, tokens: in this pair of files.
        corpus: counts of the whole run that made it: text bytes, longest document, what was left out.
        settings: all that decided the tokens (inputs with sizes and digests, key, split, ...).
        input_digest: of the text of all documents read, in order, whatever files and compression they came in.
    """

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
    corpus: dict[str, int | str] = dataclasses.field(default_factory=dict)
    settings: dict[str, object] = dataclasses.field(default_factory=dict)
    input_digest: str = ""


def manifest_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.json")


def read_manifest(prefix: str | Path) -> Manifest | None:
    """The manifest beside `<prefix>.bin`, or None where there is none (files made by Megatron have none).

    A `<prefix>.json` that is something else (the corpus itself, say) counts as none.

    Raises:
        UserError: a manifest of ours that is damaged or of another schema.
    """
    path = manifest_path(prefix)
    try:
        with open(path, "rb") as file:
            head = file.read(len(_HEAD))
            if not _HEAD.startswith(head):
                return None
            data = json.loads(head + file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged manifest ({error}); remake the shards or remove this file") from None
    if data.get("schema") != SCHEMA:
        raise UserError(f"{path}: manifest of schema {data.get('schema')}, only {SCHEMA} is known; remake the shards")
    manifest = from_dict(Manifest, data, str(path))
    if not 0 < manifest.vocab_size < 2**31:  # ids are 32 bits at most
        raise UserError(f"{path}: vocab_size {manifest.vocab_size}: damaged manifest; remake the shards")
    return manifest


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Write `<prefix>.json` atomically."""
    path = manifest_path(prefix)
    content = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False) + "\n"
    try:
        write_atomic(path, content.encode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --output-prefix") from None
