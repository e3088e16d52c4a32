"""A keyed permutation of 0..n-1 that is computed, not stored: no array, no cache, no 32-bit limit, any n at once."""

import hashlib

import numpy as np

_ROUNDS = 8


class Permutation:
    """Alternating Feistel steps on Z_a x Z_b with a b just above n, walking on while the result is >= n.

    Each step adds a keyed hash of one half to the other, modulo its size, so each step and the whole are bijections.
    The result depends on (n, key) alone: not on numpy's version, as its Generator streams do.
    """

    def __init__(self, n: int, *key: int | str) -> None:
        assert n >= 1
        self.n = n
        self._rows = int(np.ceil(np.sqrt(n)))
        self._columns = -(-n // self._rows)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, "<u8")

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """int64 images of int64 `indices` in 0..n-1, any shape."""
        out = self._once(np.atleast_1d(indices))
        while (outside := out >= self.n).any():
            out[outside] = self._once(out[outside])
        return out.reshape(np.shape(indices))

    def _once(self, indices: np.ndarray) -> np.ndarray:
        left, right = np.divmod(indices.astype(np.uint64), np.uint64(self._columns))
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        for step, key in enumerate(self._keys):
            if step % 2:
                left = (left + _mix(right, key) % rows) % rows
            else:
                right = (right + _mix(left, key) % columns) % columns
        return (left * columns + right).astype(np.int64)


def _mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """The splitmix64 finaliser of values + key (uint64 arithmetic modulo 2^64)."""
    values = values + key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
