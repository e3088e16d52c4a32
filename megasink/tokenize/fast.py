"""gigatoken, many times faster than the reference libraries, used only where its ids are proven equal on a sample."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from megasink.tokenize.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer

# What encoders differ on: whitespace runs, normalisation, combining marks, byte fallback, spelled-out byte pieces.
_TRICKY = (
    " ", "  ", " x", "x ", "a  b", "\n", "\n\n\nx", "\t", "a\r\nb", "\u2581x", "<0x0A>", "e\u0301\u0323", "\ufeffx",
    "\ufb01", "\u00a0x", "\u3000x", "\u200b", "\U0001f469\u200d\U0001f680", "\U00010348", "x" * 300, "don't WON'T",
    "12345678901234567890", "\u0001", "a\u0000b", "\u4f60\u597d\uff0c\u4e16\u754c", "\u0645\u0631\u062d\u0628\u0627",
    "def f(x):\n    return x\n",
)  # fmt: skip


class GigatokenTokenizer:
    """A reference tokenizer whose `encode_batch` is done by `num_threads` encoders of gigatoken, about 80 MB each.

    gigatoken reads control tokens spelled out in text as control tokens; the documents that hold one are left to the
    reference, so that they stay text.
    """

    library = "gigatoken"

    def __init__(self, reference: SentencePieceTokenizer | HuggingFaceTokenizer, num_threads: int) -> None:
        import gigatoken

        of_sentencepiece = isinstance(reference, SentencePieceTokenizer)
        load = gigatoken.Tokenizer.from_sentencepiece if of_sentencepiece else gigatoken.Tokenizer.from_json
        self._encoders = [load(reference.content) for _ in range(num_threads)]
        self._pool = ThreadPoolExecutor(num_threads)
        self._reference = reference
        self.vocab_size = reference.vocab_size
        self.bos_id, self.eos_id, self.digest = reference.bos_id, reference.eos_id, reference.digest
        # a substring search is far quicker than a pattern, so the pattern runs only where a token's beginning occurs
        self._beginnings = {token[:2] for token in reference.control_tokens}
        self._control = re.compile("|".join(map(re.escape, reference.control_tokens)) or r"(?!)")

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """As every tokenizer's; one call at a time (an encoder of gigatoken's serves one thread)."""
        count = len(self._encoders)
        shares = [texts[first::count] for first in range(count)]
        rows: list[np.ndarray] = [None] * len(texts)
        for first, share in enumerate(self._pool.map(self._encode, self._encoders, shares)):
            rows[first::count] = share
        return rows

    def decode(self, ids: list[int] | np.ndarray) -> str:
        return self._reference.decode(ids)

    def _encode(self, encoder: object, texts: list[str]) -> list[np.ndarray]:
        return [
            encoder.encode(text).view("<i4")
            if not self._spells_control(text)
            else self._reference.encode_batch([text])[0]
            for text in texts
        ]

    def _spells_control(self, text: str) -> bool:
        return any(beginning in text for beginning in self._beginnings) and self._control.search(text) is not None


def fastest(reference: Tokenizer, num_threads: int, sample: list[str]) -> tuple[Tokenizer, str | None]:
    """The tokenizer to encode with, and why it is not gigatoken (one line) where it is not.

    `sample` should be text of the corpus; it is encoded both ways, together with strings that encoders differ on.
    """
    try:
        fast = GigatokenTokenizer(reference, num_threads)
    except ImportError:
        return reference, "gigatoken is not installed (pip install gigatoken makes this several times faster)"
    except Exception as error:  # from its Rust part: whatever it does not support
        return reference, f"gigatoken does not take this vocabulary ({' '.join(str(error).split())[:120]})"
    texts = [*sample, *_TRICKY, *(f"a{token}b {token}" for token in reference.control_tokens[:20])]
    expected, found = reference.encode_batch(texts), fast.encode_batch(texts)
    different = sum(not np.array_equal(left, right) for left, right in zip(expected, found, strict=True))
    if different:
        return reference, f"gigatoken's ids differ from {reference.library}'s on {different} of {len(texts)} samples"
    return fast, None
