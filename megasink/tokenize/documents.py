"""Raw text as documents, streamed from every input format in blocks of bounded size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megasink.errors import UserError
from megasink.tokenize.blocks import BadDocument, Block, check_text, decode, parse
from megasink.tokenize.sources import SourceFile
from megasink.tokenize.streams import InputStream, line_number

BLOCK_BYTES = 1 << 20  # of input; a few such blocks are the memory of a run
_BOM = b"\xef\xbb\xbf"


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
        for block in self.blocks([segment]):
            self.refuse(block, [])
            read = block.read
            for document in parse(block, self.json_key):
                if isinstance(document, BadDocument):
                    self.refuse(block, [document])
                else:
                    yield document, read
                    read = 0

    def blocks(self, segments: Iterable[Segment]) -> Iterator[Block]:
        """The same documents unparsed. Whoever parses them gives what was bad to `refuse`.

        Raises:
            UserError: a damaged file.
        """
        rows = _Rows()
        for segment in segments:
            if segment.source.format == "jsonl":
                yield from rows.take()
                yield from _line_blocks(segment)
            else:
                for row in self._rows(segment):
                    rows.add(*row)
                    if rows.size >= BLOCK_BYTES:
                        yield from rows.take()
        yield from rows.take()

    def refuse(self, block: Block, bad: list[BadDocument]) -> None:
        """Count a block's bad documents, those noticed on reading and those `bad` that parsing found.

        Raises:
            UserError: at the first, unless `skip_bad`; it names file and line.
        """
        self.bad += len(block.bad) + len(bad)
        if self.skip_bad:
            return
        if block.bad:
            raise UserError(block.bad[0])
        if bad:
            before = block.lines_before
            before = line_number(block.path, block.offset) - 1 if before is None else before
            raise UserError(f"{block.path} line {before + bad[0].row + 1}: {bad[0]}")

    def _rows(self, segment: Segment) -> Iterator[tuple[str | BadDocument, int, str]]:
        """(text or why it cannot be used, bytes of the file read since the last one, where it is)."""
        source = segment.source
        if source.format == "text":
            yield _text_of_file(source), source.size, source.path
            return
        from megasink.tokenize.tables import read_hub, read_rows

        hub = source.format == "hub"
        rows = read_hub(self.hub, segment.start, self.json_key) if hub else read_rows(source, self.json_key)
        for number, (value, size) in enumerate(rows):
            try:
                document = "" if value is None else check_text(value, self.json_key)
            except BadDocument as bad:
                document = bad
            yield document, size, f"{source.path} row {number}"


class _Rows:
    """Texts that come one by one, gathered to a block."""

    def __init__(self) -> None:
        self._texts: list[bytes] = []
        self._bad: list[str] = []
        self._read = 0
        self.size = 0

    def add(self, document: str | BadDocument, read: int, where: str) -> None:
        self._read += read
        if isinstance(document, BadDocument):
            self._bad.append(f"{where}: {document}")
        else:
            self._texts.append(document.encode("utf-8"))
            self.size += len(self._texts[-1])

    def take(self) -> Iterator[Block]:
        """The block, if there is anything in it; then it begins anew."""
        if self._texts or self._bad:
            yield Block(b"".join(self._texts), [len(text) for text in self._texts], self._read, self._bad)
        self.__init__()


def _text_of_file(source: SourceFile) -> str | BadDocument:
    with InputStream(source.path, source.compression) as stream:
        content = stream.read_document()
    try:
        return decode(content.removeprefix(_BOM))
    except BadDocument as bad:
        return bad


def _line_blocks(segment: Segment) -> Iterator[Block]:
    source = segment.source
    plain = source.compression == "none"
    with InputStream(source.path, source.compression) as stream:
        reported, lines = stream.consumed, 0
        for offset, content in stream.lines(segment.start, segment.stop, BLOCK_BYTES):
            # the last line may reach beyond the segment
            done = min(offset + len(content) - segment.start, segment.size) if plain else stream.consumed
            yield Block(
                content.removeprefix(_BOM) if offset == 0 else content,
                read=done - reported,
                path=source.path,
                offset=offset,
                lines_before=None if plain else lines,
            )
            reported = done
            lines += 0 if plain else content.count(b"\n")
