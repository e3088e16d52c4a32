"""gigatoken, many times faster than the reference libraries, used only where its ids are proven equal on a sample."""

import contextlib
import dataclasses
import fcntl
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megasink.errors import UserError
from megasink.tokenize.blocks import BadDocument, Block, EncodedBlock, Form, split
from megasink.tokenize.control import with_rare_names
from megasink.tokenize.messages import receive, send, send_ids, send_texts
from megasink.tokenize.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer

# What encoders differ on: whitespace runs, normalisation, combining marks, byte fallback, spelled-out byte pieces.
_TRICKY = (
    " ", "  ", " x", "x ", "a  b", "\n", "\n\n\nx", "\t", "a\r\nb", "\u2581x", "<0x0A>", "e\u0301\u0323", "\ufeffx",
    "\ufb01", "\u00a0x", "\u3000x", "\u200b", "\U0001f469\u200d\U0001f680", "\U00010348", "x" * 300, "don't WON'T",
    "12345678901234567890", "\u0001", "a\u0000b", "\u4f60\u597d\uff0c\u4e16\u754c", "\u0645\u0631\u062d\u0628\u0627",
    "def f(x):\n    return x\n",
)  # fmt: skip
_PIPE_BYTES = 1 << 20  # the most an ordinary user may ask for; fewer switches between the processes


class NotUsable(Exception):
    """Why gigatoken cannot encode with this tokenizer, in one line."""


class GigatokenTokenizer:
    """A reference tokenizer whose work is done by `num_workers` processes of gigatoken (fast_worker.py).

    A call keeps one of them busy, so that many calls should be made at once (`num_calls`).

    gigatoken reads control tokens spelled out in text as control tokens; the documents that hold one are left to the
    reference, so that they stay text. In a SentencePiece model they are renamed first: `<s>` is frequent in HTML.

    They start meanwhile: call `wait_until_ready` before anything else.
    """

    library = "gigatoken"

    def __init__(self, reference: SentencePieceTokenizer | HuggingFaceTokenizer, num_workers: int) -> None:
        self.vocab_size = reference.vocab_size
        self.bos_id, self.eos_id, self.digest = reference.bos_id, reference.eos_id, reference.digest
        self.num_calls = num_workers
        self._reference = reference
        self._idle: queue.SimpleQueue[_Link] = queue.SimpleQueue()
        self._links, theirs = [], []
        for _ in range(num_workers):
            questions, answers = os.pipe(), os.pipe()
            theirs.append((questions[0], answers[1]))
            self._links.append(_Link(os.fdopen(questions[1], "wb"), os.fdopen(answers[0], "rb"), reference))
            self._idle.put(self._links[-1])
        path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
        # gigatoken looks up words at random places of large tables: large pages make it some 5 % faster
        malloc = [os.environ.get("GLIBC_TUNABLES"), "glibc.malloc.hugetlb=1"]
        variables = {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "GLIBC_TUNABLES": ":".join(filter(None, malloc)),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "megasink.tokenize.fast_worker", *(f"{pair[0]},{pair[1]}" for pair in theirs)],
            env={**os.environ, **variables},
            pass_fds=[descriptor for pair in theirs for descriptor in pair],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # this process says in one line what went wrong
            start_new_session=True,  # Ctrl-C is for this process, which ends the others
        )
        for descriptor in (descriptor for pair in theirs for descriptor in pair):
            os.close(descriptor)
        kind, content, control_tokens = b"tokenizer.json", reference.content, reference.control_tokens
        if isinstance(reference, SentencePieceTokenizer):
            kind = b"sentencepiece"
            content, control_tokens = with_rare_names(content, control_tokens)
        with contextlib.suppress(OSError):  # it ended at once: `wait_until_ready` says so
            send(self._process.stdin, kind, content, json.dumps(control_tokens).encode())

    def wait_until_ready(self) -> None:
        """Raises NotUsable where gigatoken is missing or does not take the vocabulary; then the processes are gone."""
        try:
            (reason,) = receive(self._process.stdout)
        except EOFError:
            reason = b"gigatoken did not start"
        if reason:
            self.close()
            raise NotUsable(reason.decode())

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        with self._free_link() as link:
            return link.encode(texts)

    def encode_block(self, block: Block, form: Form) -> EncodedBlock:
        """As blocks.encode_block does it; all of it happens in the other process."""
        with self._free_link() as link:
            return link.encode_block(block, form)

    def decode(self, ids: list[int] | np.ndarray) -> str:
        return self._reference.decode(ids)

    def close(self) -> None:
        """End the processes."""
        for link in self._links:
            link.close_questions()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        for link in self._links:
            link.close_answers()

    @contextlib.contextmanager
    def _free_link(self) -> Iterator["_Link"]:
        link = self._idle.get()
        try:
            yield link
        finally:
            self._idle.put(link)


class _Link:
    """Questions to one process and its answers."""

    def __init__(self, questions: BinaryIO, answers: BinaryIO, reference: Tokenizer) -> None:
        self._questions, self._answers, self._reference = questions, answers, reference
        with contextlib.suppress(OSError):
            fcntl.fcntl(questions, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            fcntl.fcntl(answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        with _named_end():
            send_texts(self._questions, b"texts", [text.encode("utf-8") for text in texts])
            _, lengths, ids = self._answer(b"ids")
        return split(np.frombuffer(ids, np.int32), np.frombuffer(lengths, np.int64).tolist())

    def encode_block(self, block: Block, form: Form) -> EncodedBlock:
        lengths = [] if block.lengths is None else [np.array(block.lengths, np.int64)]
        with _named_end():
            send(self._questions, b"block", json.dumps(dataclasses.asdict(form)).encode(), block.content, *lengths)
            _, dtype, tokens, lengths, hashes, counts = self._answer(b"block")
        text_bytes, empty, bad = json.loads(counts)
        return EncodedBlock(
            tokens=np.frombuffer(tokens, dtype.decode()),
            lengths=np.frombuffer(lengths, np.int64),
            hashes=hashes,
            text_bytes=text_bytes,
            empty=empty,
            bad=[BadDocument(reason, row) for row, reason in bad],
        )

    def _answer(self, kind: bytes) -> list[bytes]:
        """The answer; documents that it leaves to the reference are encoded meanwhile."""
        while (answer := receive(self._answers))[0] != kind:
            texts = split(answer[2], np.frombuffer(answer[1], np.int64).tolist())
            send_ids(self._questions, self._reference.encode_batch([text.decode("utf-8") for text in texts]))
        return answer

    def close_questions(self) -> None:
        with contextlib.suppress(OSError):
            self._questions.close()

    def close_answers(self) -> None:
        self._answers.close()


@contextlib.contextmanager
def _named_end() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError):
        raise UserError(
            "a gigatoken process ended (out of memory?); go on with --resume, or use --encoder reference"
        ) from None


def fastest(reference: Tokenizer, num_workers: int, sample: list[str]) -> tuple[Tokenizer, str | None]:
    """The tokenizer to encode with, and why it is not gigatoken (one line) where it is not.

    `sample` should be text of the corpus; it is encoded both ways, together with strings that encoders differ on.
    """
    texts = [*sample, *_TRICKY, *(f"a{token}b {token}" for token in reference.control_tokens[:20])]
    try:
        fast = GigatokenTokenizer(reference, num_workers)
    except OSError as error:
        return reference, f"gigatoken did not start ({error})"
    expected = reference.encode_batch(texts)
    try:
        fast.wait_until_ready()
    except NotUsable as reason:
        return reference, str(reason)
    shares = [range(first, len(texts), num_workers) for first in range(num_workers)]
    with ThreadPoolExecutor(num_workers) as executor:  # every process begins to learn the corpus's words
        found = list(executor.map(lambda share: fast.encode_batch([texts[at] for at in share]), shares))
    different = sum(
        not np.array_equal(expected[at], row)
        for share, rows in zip(shares, found, strict=True)
        for at, row in zip(share, rows, strict=True)
    )
    if different:
        fast.close()
        return reference, f"gigatoken's ids differ from {reference.library}'s on {different} of {len(texts)} samples"
    return fast, None
