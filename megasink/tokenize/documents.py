"""Raw text as documents, streamed from every input format."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from megasink.errors import UserError
from megasink.tokenize.sources import SourceFile
from megasink.tokenize.streams import InputStream, line_number

_BOM = b"\xef\xbb\xbf"


class BadDocument(Exception):
    """Why a document cannot be used; the reader adds where it is, or counts it."""


@dataclass(frozen=True)
class Segment:
    """A piece of the corpus that is read in one go: a file, or the lines that begin in a byte range of one.

    Of a hub dataset: one of its own shards; start = stop = the shard's number, and its size is not known.
    """

    source: SourceFile
    start: int = 0
    stop: int | None = None

    @property
    def size(self) -> int:
        return (self.source.size if self.stop is None else self.stop) - self.start


@dataclass
class Reader:
    """How documents are read.

    Attributes:
        json_key: key (or column) of the text.
        skip_bad: leave out and count documents that cannot be read, instead of stopping at the first.
        hub: the streaming dataset that segments of format "hub" belong to.
        bad: documents left out so far.
    """

    json_key: str = "text"
    skip_bad: bool = False
    hub: object | None = None
    bad: int = 0

    def documents(self, segment: Segment) -> Iterator[tuple[str, int]]:
        """(text, bytes of the file read since the last one), in order, empty texts too.

        `.jsonl` is read line by line, blank lines skipped; a Parquet or Arrow row is a document, null is empty; any
        other file is one document.

        Raises:
            UserError: naming file and line: not UTF-8, a NUL byte (binary), not JSON, no such key, not a string
                (unless `skip_bad`), or a damaged file.
        """
        read = {"jsonl": self._json_lines, "text": self._text_file}.get(segment.source.format, self._rows)
        return read(segment)

    def _json_lines(self, segment: Segment) -> Iterator[tuple[str, int]]:
        source = segment.source
        with InputStream(source.path, source.compression) as stream:
            reported, number = stream.consumed, 0
            for offset, line in stream.lines(segment.start, segment.stop):
                number += 1
                if offset == 0:
                    line = line.removeprefix(_BOM)
                if line.isspace():
                    continue
                try:
                    text = self._text_of_json(line)
                except BadDocument as bad:
                    number = line_number(source.path, offset) if source.compression == "none" else number
                    self._refuse(bad, f"{source.path} line {number}")
                    continue
                inside = min(offset + len(line) - segment.start, segment.size)  # the last line may reach beyond
                done = inside if source.compression == "none" else stream.consumed
                yield text, done - reported
                reported = done

    def _text_file(self, segment: Segment) -> Iterator[tuple[str, int]]:
        source = segment.source
        with InputStream(source.path, source.compression) as stream:
            content = stream.read_document()
        try:
            yield decode(content.removeprefix(_BOM)), source.size
        except BadDocument as bad:
            self._refuse(bad, source.path)

    def _rows(self, segment: Segment) -> Iterator[tuple[str, int]]:
        from megasink.tokenize.tables import read_hub, read_rows

        rows = (
            read_hub(self.hub, segment.start, self.json_key)
            if segment.source.format == "hub"
            else read_rows(segment.source, self.json_key)
        )
        for number, (value, size) in enumerate(rows):
            try:
                yield "" if value is None else self._checked(value), size
            except BadDocument as bad:
                self._refuse(bad, f"{segment.source.path} row {number}")

    def _refuse(self, bad: BadDocument, where: str) -> None:
        if not self.skip_bad:
            raise UserError(f"{where}: {bad}") from None
        self.bad += 1

    def _text_of_json(self, line: bytes) -> str:
        try:
            record = json.loads(decode(line))
        except (ValueError, RecursionError) as error:
            raise BadDocument(f"not JSON ({error}); JSONL holds one object a line") from None
        if not isinstance(record, dict) or self.json_key not in record:
            keys = ", ".join(list(record)[:10]) if isinstance(record, dict) else type(record).__name__
            raise BadDocument(f'no key "{self.json_key}" (it has: {keys}); name the text\'s key with --json-key')
        return self._checked(record[self.json_key])

    def _checked(self, text: object) -> str:
        if not isinstance(text, str):
            raise BadDocument(f'the value of "{self.json_key}" is {type(text).__name__}, not text')
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise BadDocument(f'the value of "{self.json_key}" has a lone surrogate, which is not text') from None
        return text


def decode(content: bytes) -> str:
    """UTF-8 text without NUL bytes, or BadDocument."""
    if b"\0" in content:
        raise BadDocument("holds NUL bytes: a binary file, not text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadDocument(f"not UTF-8 (byte {error.start}: {error.reason}); convert it to UTF-8") from None
