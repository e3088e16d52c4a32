"""Raw text as documents: JSONL (one object a line) and plain text (one file is one document), streamed."""

import json
from collections.abc import Iterator
from pathlib import Path

from megasink.errors import UserError

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


def check_inputs(inputs: tuple[str, ...]) -> int:
    """Bytes of all inputs together; raises UserError for one that is missing, not a file, unreadable or repeated."""
    if not inputs:
        raise UserError("--input: name at least one file")
    total, seen = 0, set()
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            raise UserError(f"--input {path}: a folder; name its files")
        try:
            with open(path, "rb"):
                total += path.stat().st_size
        except OSError as error:
            raise UserError(f"--input {path}: {error.strerror}") from None
        if path.resolve() in seen:
            raise UserError(f"--input {path}: named twice; every file is read once")
        seen.add(path.resolve())
    return total


def read_documents(inputs: tuple[str, ...], json_key: str = "text") -> Iterator[tuple[str, int]]:
    """(text, bytes read for it) of every document in the order of the files; empty ones too.

    `.jsonl`, `.ndjson` and `.json` are read line by line, blank lines skipped; any other file is one document.

    Raises:
        UserError: naming file and line: not UTF-8, a NUL byte (binary), not JSON, no such key, not a string.
    """
    for name in inputs:
        path = Path(name)
        if path.suffix in JSON_SUFFIXES:
            yield from _read_json_lines(path, json_key)
        else:
            content = _read(path)
            yield _decode(content, str(path)), len(content)


def _read_json_lines(path: Path, json_key: str) -> Iterator[tuple[str, int]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            where = f"{path} line {number}"
            yield _text_of(_decode(line, where), json_key, where), len(line)


def _text_of(line: str, json_key: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); JSONL holds one object a line") from None
    if not isinstance(record, dict) or json_key not in record:
        keys = ", ".join(list(record)[:10]) if isinstance(record, dict) else type(record).__name__
        raise UserError(f'{where}: no key "{json_key}" (it has: {keys}); name the text\'s key with --json-key')
    text = record[json_key]
    if not isinstance(text, str):
        raise UserError(f'{where}: the value of "{json_key}" is {type(text).__name__}, not text')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f'{where}: the value of "{json_key}" has a lone surrogate, which is not text') from None
    return text


def _decode(content: bytes, where: str) -> str:
    if b"\0" in content:
        raise UserError(f"{where}: holds NUL bytes: a binary file, not text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start}: {error.reason}); convert it to UTF-8") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror}") from None
