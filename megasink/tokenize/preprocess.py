"""Documents to a `.bin/.idx` pair and its manifest, streamed through the tokenizer in batches."""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from megasink.data.indexed import IndexedDatasetWriter
from megasink.data.manifest import SCHEMA, Manifest, manifest_path, write_manifest
from megasink.errors import UserError
from megasink.tokenize.documents import check_inputs, read_documents
from megasink.tokenize.tokenizers import Tokenizer, load_tokenizer

BATCH_BYTES = 4 << 20  # text handed to the tokenizer at once


@dataclass
class PreprocessConfig:
    """Tokenize text files into Megatron's .bin/.idx."""

    input: tuple[str, ...]
    """JSONL files (.jsonl .ndjson .json: one object a line) or text files (one file is one document)."""
    output_prefix: str
    """Writes <prefix>.bin, <prefix>.idx and the manifest <prefix>.json."""
    tokenizer: str
    """SentencePiece .model, tokenizer.json, or a folder that holds one."""
    json_key: str = "text"
    """Key of the text in each JSON object."""
    append_eod: bool = False
    """End every document with the tokenizer's EOS."""
    prepend_bos: bool = False
    """Begin every document with the tokenizer's BOS: a steady first token."""
    workers: int = 1
    """Threads that tokenize."""


@dataclass
class Summary:
    """What a run of the writer saw; bytes are UTF-8 bytes of text."""

    documents: int = 0
    empty: int = 0
    tokens: int = 0
    text_bytes: int = 0
    longest: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        per_token = self.text_bytes / self.tokens if self.tokens else 0.0
        speed = self.text_bytes / 1e6 / self.seconds
        return (
            f"{self.documents} documents, {self.tokens} tokens, {per_token:.2f} bytes/token, longest {self.longest} "
            f"tokens, {self.empty} empty left out; {self.seconds:.1f} s, {speed:.1f} MB/s, "
            f"{self.tokens / self.seconds / 1e6:.2f} M tokens/s"
        )


def preprocess(config: PreprocessConfig) -> Summary:
    """Tokenize the inputs into `config.output_prefix`; documents without text are left out and counted.

    Raises:
        UserError: anything wrong with the inputs, the tokenizer or the output; nothing is left at the prefix then.
    """
    total = check_inputs(config.input)
    tokenizer = load_tokenizer(config.tokenizer, config.workers)
    before, after = _surroundings(config, tokenizer)
    summary, began = Summary(), time.perf_counter()
    with (
        IndexedDatasetWriter(config.output_prefix, tokenizer.vocab_size) as writer,
        tqdm(total=total, unit="B", unit_scale=True, desc="tokenize", disable=None, file=sys.stderr) as progress,
    ):
        for texts, read in batches(read_documents(config.input, config.json_key), summary):
            rows = [np.concatenate([before, ids, after]) for ids in tokenizer.encode_batch(texts)]
            lengths = np.array([len(row) for row in rows])
            writer.add_documents(np.concatenate(rows), lengths)
            summary.longest = max(summary.longest, int(lengths.max()))
            progress.update(read)
            progress.set_postfix_str(f"{writer.num_tokens / (time.perf_counter() - began) / 1e6:.2f} M tokens/s")
        if writer.num_documents == 0:
            raise UserError(f"no text in {' '.join(config.input)}: an empty corpus cannot be trained on")
        manifest_path(config.output_prefix).unlink(missing_ok=True)
    summary.documents, summary.tokens = writer.num_documents, writer.num_tokens
    summary.seconds = time.perf_counter() - began
    write_manifest(config.output_prefix, _manifest(config, tokenizer, summary))
    return summary


def batches(documents: Iterable[tuple[str, int]], summary: Summary) -> Iterator[tuple[list[str], int]]:
    """(texts, input bytes read) of about BATCH_BYTES of text; documents without text are counted and left out."""
    texts, size, read = [], 0, 0
    for text, consumed in documents:
        read += consumed
        if not text.strip():
            summary.empty += 1
            continue
        texts.append(text)
        bytes_of_text = len(text.encode("utf-8"))
        summary.text_bytes += bytes_of_text
        size += bytes_of_text
        if size >= BATCH_BYTES:
            yield texts, read
            texts, size, read = [], 0, 0
    if texts:
        yield texts, read


def _surroundings(config: PreprocessConfig, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """int32 ids put before and after every document."""
    if config.prepend_bos and tokenizer.bos_id is None:
        raise UserError(f"--prepend-bos: the tokenizer {config.tokenizer} has no BOS token; drop the flag")
    if config.append_eod and tokenizer.eos_id is None:
        raise UserError(f"--append-eod: the tokenizer {config.tokenizer} has no EOS token; drop the flag")
    before = [tokenizer.bos_id] if config.prepend_bos else []
    after = [tokenizer.eos_id] if config.append_eod else []
    return np.array(before, np.int32), np.array(after, np.int32)


def _manifest(config: PreprocessConfig, tokenizer: Tokenizer, summary: Summary) -> Manifest:
    return Manifest(
        schema=SCHEMA,
        tokenizer=config.tokenizer,
        tokenizer_digest=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        prepend_bos=config.prepend_bos,
        append_eod=config.append_eod,
        documents=summary.documents,
        tokens=summary.tokens,
    )
