"""How far a run is: a bar on a terminal, a line every half minute in a log."""

import sys
import time
from datetime import timedelta

from tqdm import tqdm

_LOG_SECONDS = 30


class Progress:
    """Speeds are over the run so far; the time left is by bytes of input. Use as a context manager.

    Args:
        total: bytes of input; None where it is not known (a dataset of a hub), then there is no time left.
    """

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._began = self._said = time.perf_counter()
        self._read = self._characters = self._tokens = 0
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc="tokenize", file=sys.stderr, mininterval=0.2)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, read: int, characters: int, tokens: int) -> None:
        """Count a batch: bytes of input, characters of text, tokens."""
        self._read += read
        self._characters += characters
        self._tokens += tokens
        now = time.perf_counter()
        seconds = now - self._began
        speeds = f"{self._characters / seconds / 1e6:.1f} MB/s, {self._tokens / seconds / 1e6:.2f} M tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(speeds, refresh=False)
            self._bar.update(read)
        elif now - self._said >= _LOG_SECONDS:
            self._said = now
            print(f"megasink: {self._done(seconds)}, {speeds}", file=sys.stderr, flush=True)

    def _done(self, seconds: float) -> str:
        if not self._total or not self._read:
            return f"{self._characters / 1e6:,.0f} MB of text tokenized"
        left = timedelta(seconds=round(seconds * max(self._total / self._read - 1, 0)))
        share = 100 * self._read / self._total
        return f"{self._read / 1e6:,.0f} of {self._total / 1e6:,.0f} MB tokenized ({share:.0f} %), {left} left"
