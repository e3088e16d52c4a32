"""gigatoken, many times faster than the reference libraries, used only where its ids are proven equal on a sample."""

import contextlib
import queue
import re
import subprocess
import sys

import numpy as np

from megasink.errors import UserError
from megasink.tokenize import fast_worker
from megasink.tokenize.fast_worker import receive, receive_rows, send, send_rows
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
    """A reference tokenizer whose `encode_batch` is done by `num_workers` processes of gigatoken, about 100 MB each.

    A call keeps one of them busy, so that many calls should be made at once (`num_calls`).

    gigatoken reads control tokens spelled out in text as control tokens; the documents that hold one are left to the
    reference, so that they stay text.

    They start meanwhile: call `wait_until_ready` before anything else.
    """

    library = "gigatoken"

    def __init__(self, reference: SentencePieceTokenizer | HuggingFaceTokenizer, num_workers: int) -> None:
        self._workers = [_Worker() for _ in range(num_workers)]
        try:
            for worker in self._workers:
                worker.load(reference)
        except OSError:
            self.close()
            raise
        self.num_calls = num_workers
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._reference = reference
        self.vocab_size = reference.vocab_size
        self.bos_id, self.eos_id, self.digest = reference.bos_id, reference.eos_id, reference.digest
        # a substring search is far quicker than a pattern, so the pattern runs only where a token's beginning occurs
        self._beginnings = {token[:2] for token in reference.control_tokens}
        self._control = re.compile("|".join(map(re.escape, reference.control_tokens)) or r"(?!)")

    def wait_until_ready(self) -> None:
        """Raises NotUsable where gigatoken is missing or does not take the vocabulary; then the processes are gone."""
        try:
            for worker in self._workers:
                worker.wait_until_ready()
        except (NotUsable, OSError, EOFError):
            self.close()
            raise

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        worker = self._idle.get()
        try:
            rows = worker.encode(texts)
        finally:
            self._idle.put(worker)
        for number, text in enumerate(texts):
            if self._spells_control(text):
                rows[number] = self._reference.encode_batch([text])[0]
        return rows

    def decode(self, ids: list[int] | np.ndarray) -> str:
        return self._reference.decode(ids)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()

    def _spells_control(self, text: str) -> bool:
        return any(beginning in text for beginning in self._beginnings) and self._control.search(text) is not None


class _Worker:
    """One process of fast_worker.py; it ends when its stdin does."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", fast_worker.__file__],  # -P: our tokenizers.py must not hide the library
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=_PIPE_BYTES,
            stderr=subprocess.DEVNULL,  # this process says in one line what went wrong
            start_new_session=True,  # Ctrl-C is for this process, which ends the others
        )

    def load(self, reference: SentencePieceTokenizer | HuggingFaceTokenizer) -> None:
        kind = b"sentencepiece" if isinstance(reference, SentencePieceTokenizer) else b"tokenizer.json"
        send(self._process.stdin, kind)
        send(self._process.stdin, reference.content)

    def wait_until_ready(self) -> None:
        if reason := receive(self._process.stdout):
            raise NotUsable(reason.decode())

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        try:
            send_rows(self._process.stdin, [text.encode("utf-8") for text in texts], 1)
            return [np.frombuffer(row, "<i4") for row in receive_rows(self._process.stdout, 4)]
        except (OSError, EOFError):
            raise UserError(
                "a gigatoken process ended (out of memory?); go on with --resume, or use --encoder reference"
            ) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def fastest(reference: Tokenizer, num_workers: int, sample: list[str]) -> tuple[Tokenizer, str | None]:
    """The tokenizer to encode with, and why it is not gigatoken (one line) where it is not.

    `sample` should be text of the corpus; it is encoded both ways, together with strings that encoders differ on.
    """
    texts = [*sample, *_TRICKY, *(f"a{token}b {token}" for token in reference.control_tokens[:20])]
    try:
        fast = GigatokenTokenizer(reference, num_workers)
        expected = reference.encode_batch(texts)
        fast.wait_until_ready()
    except NotUsable as reason:
        return reference, str(reason)
    except (OSError, EOFError) as error:
        return reference, f"gigatoken did not start ({error})"
    found = fast.encode_batch(texts)
    different = sum(not np.array_equal(left, right) for left, right in zip(expected, found, strict=True))
    if different:
        fast.close()
        return reference, f"gigatoken's ids differ from {reference.library}'s on {different} of {len(texts)} samples"
    return fast, None
