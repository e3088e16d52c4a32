"""A corpus cut into units of work, the same on every machine, and a fingerprint of all that decides the tokens."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from megasink.tokenize.documents import Segment
from megasink.tokenize.sources import SourceFile
from megasink.tokenize.streams import sample_bytes

_MOST_FILES = 10_000  # in one unit


@dataclass(frozen=True)
class Plan:
    """Units in the corpus's order; the outputs are the units' outputs one after the other.

    Attributes:
        units: segments of each unit.
        settings: name -> JSON value of all that decides the tokens.
    """

    units: list[list[Segment]]
    settings: dict[str, object]

    @property
    def size(self) -> int:
        """Bytes of input."""
        return sum(segment.size for unit in self.units for segment in unit)


def cut(sources: list[SourceFile], unit_bytes: int) -> list[list[Segment]]:
    """Units of about `unit_bytes`: small files together, large plain JSONL in ranges, other files whole."""
    units, unit, size = [], [], 0
    for segment in (segment for source in sources for segment in _segments(source, unit_bytes)):
        unit.append(segment)
        size += segment.size
        if size >= unit_bytes or len(unit) >= _MOST_FILES:
            units.append(unit)
            unit, size = [], 0
    return [*units, unit] if unit else units


def describe(sources: list[SourceFile]) -> list[list[object]]:
    """[path, bytes, digest of the first and last 4 KiB] of each input."""
    return [
        [source.path, source.size, hashlib.sha256(sample_bytes(source.path, source.size)).hexdigest()[:16]]
        for source in sources
    ]


def _segments(source: SourceFile, unit_bytes: int) -> Iterator[Segment]:
    if source.format == "jsonl" and source.compression == "none" and source.size > unit_bytes:
        for start in range(0, source.size, unit_bytes):
            yield Segment(source, start, min(start + unit_bytes, source.size))
    else:
        yield Segment(source)
