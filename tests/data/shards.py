"""Small pairs of token files for tests."""

from pathlib import Path

import numpy as np

from megasink.data.indexed import IndexedDatasetWriter


def write_shards(prefix: Path, lengths: list[int], first_token: int = 0) -> str:
    """Documents of these lengths whose tokens count up from `first_token`, so that a token tells where it is from."""
    with IndexedDatasetWriter(prefix, 2**31 - 1) as writer:
        for length in lengths:
            writer.add_document(np.arange(first_token, first_token + length))
            first_token += length
    return str(prefix)
