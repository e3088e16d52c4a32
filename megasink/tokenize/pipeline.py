"""Blocks read ahead and encoded side by side, handed on in their order."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor

from megasink.errors import UserError
from megasink.tokenize.blocks import Block, EncodedBlock
from megasink.tokenize.documents import Reader, Segment
from megasink.tokenize.parts import Encoder


def encoded_units(
    units: list[list[Segment]], reader: Reader, encoder: Encoder, executor: Executor
) -> Iterator[Iterator[tuple[Block, EncodedBlock]]]:
    """Each unit's blocks with what became of them; take them all before the next unit.

    The executor encodes while the next blocks are read, also those of the next unit, and the last ones are written.

    Raises:
        UserError: what reading raises, when all before it has been handed on.
    """
    found = _encoded(_blocks(units, reader), encoder, executor)
    for _ in units:
        yield iter(lambda: next(found), None)


def _blocks(units: list[list[Segment]], reader: Reader) -> Iterator[Block | UserError | None]:
    """All blocks, None after each unit, and an error of reading where it came up."""
    try:
        for unit in units:
            yield from reader.blocks(unit)
            yield None
    except UserError as error:
        yield error


def _encoded(
    blocks: Iterator[Block | UserError | None], encoder: Encoder, executor: Executor
) -> Iterator[tuple[Block, EncodedBlock] | None]:
    waiting: deque = deque()
    for block in blocks:
        waiting.append((block, executor.submit(encoder.encode, block) if isinstance(block, Block) else None))
        if len(waiting) > encoder.tokenizer.num_calls + 1:  # one more, so that none waits for this thread
            yield _result(*waiting.popleft())
    for block, future in waiting:
        yield _result(block, future)


def _result(block: Block | UserError | None, future) -> tuple[Block, EncodedBlock] | None:
    if isinstance(block, UserError):
        raise block
    return block and (block, future.result())
