"""Flags of tools/preprocess_data.py."""

import os
from dataclasses import dataclass, field
from typing import Literal

from megasink.data.build import parse_split
from megasink.errors import UserError


@dataclass
class PreprocessConfig:
    """Tokenize text into Megatron's .bin/.idx, restartable and in parallel over machines."""

    output_prefix: str
    """Writes <prefix>.bin, <prefix>.idx and the manifest <prefix>.json (with --split <prefix>_train.bin and so on)."""
    tokenizer: str
    """SentencePiece .model, tokenizer.json, or a folder that holds one."""
    input: tuple[str, ...] = ()
    """Files, folders and patterns. .jsonl .ndjson .json (a document a line) and .txt .md (a document each), also with
    .gz or .zst; .parquet and .arrow (a document a row). A file with another suffix is one document of text."""
    hf_dataset: str | None = None
    """Instead of --input: a dataset of a Hugging Face hub, or a folder that `datasets` can load; streamed."""
    hf_config: str | None = None
    """Configuration of --hf-dataset."""
    hf_split: str = "train"
    """Split of --hf-dataset."""
    json_key: str = "text"
    """Key (or column) of the text."""
    append_eod: bool = False
    """End every document with the tokenizer's EOS."""
    prepend_bos: bool = False
    """Begin every document with the tokenizer's BOS."""
    split: str | None = None
    """Shares of train, valid and test, 969,30,1: three outputs, a document's decided by the hash of its text."""
    deduplicate: bool = False
    """Keep only the first of documents with equal text."""
    skip_bad_documents: bool = False
    """Leave out and count documents that cannot be read (not UTF-8, not JSON, no such key) instead of stopping."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """gigatoken's processes (at most 4), or threads of the tokenizer's library; default: the CPUs this process has."""
    encoder: Literal["fastest", "reference"] = "fastest"
    """fastest: gigatoken if its ids equal the tokenizer's own library on a sample; reference: always that library."""
    shard: str | None = None
    """i/n: make every n-th unit from i on (0 <= i < n), as one of n jobs; afterwards run once with --merge."""
    merge: bool = False
    """Join what the --shard jobs made; give the same other flags."""
    resume: bool = False
    """Go on after a kill: finished units in <prefix>.parts are kept."""
    unit_mib: float = 256
    """Input per unit of work, in MiB: the most that a kill costs. Does not change the result; a corpus of one unit
    needs no merging."""

    def deciding(self) -> dict[str, object]:
        """The flags that decide the tokens and the units; a run is resumed with the same ones."""
        names = "hf_dataset hf_config hf_split json_key append_eod prepend_bos split deduplicate skip_bad_documents"
        return {name: getattr(self, name) for name in (*names.split(), "unit_mib")}

    def job(self) -> tuple[int, int]:
        """(i, n) of --shard, (0, 1) without it.

        Raises:
            UserError: here and for every flag that has no meaning alone or beside the others.
        """
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be at least 1")
        if self.unit_mib * 2**20 < 1:
            raise UserError(f"--unit-mib {self.unit_mib}: too small; 256 is usual")
        if self.split is not None:
            parse_split(self.split)
        if self.shard is None:
            return 0, 1
        if self.merge:
            raise UserError("--merge joins all shards: give it without --shard")
        index, _, count = self.shard.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UserError(f"--shard {self.shard}: give i/n with 0 <= i < n, for example 0/4 to 3/4")
        return int(index), int(count)
