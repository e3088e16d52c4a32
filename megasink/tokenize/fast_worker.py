"""Processes that encode with gigatoken, whose encoders hold Python's lock: threads of one process would take turns.

The first process gets [kind, tokenizer's file, control tokens] on stdin, loads it, and answers with an empty message or
why it cannot. Then each pair of descriptors in its arguments (questions in, answers out) is served by a fork of it,
until the questions end (also when the parent is killed). To start quickly it imports no more of megasink than it needs.

An encoder remembers every word it has met, without bound, and gives no memory back when it goes. So a fork that has
grown by _MEMORY ends, and the next one takes over, in milliseconds.
"""

import gc
import json
import os
import re
import sys
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from megasink.tokenize.blocks import Block, Form, encode_block, split
from megasink.tokenize.messages import receive, send, send_ids, send_texts

_MEMORY = 36 << 20  # bytes; its table doubles now and then, and a run with two workers is to stay below 300 MB
_GROWN = 3  # exit code of a fork that hands over


class _Encoder:
    """Texts in UTF-8 to ids. gigatoken reads control tokens spelled out in text as control tokens, so the documents
    that hold one are sent back to the parent, which has the reference tokenizer.
    """

    def __init__(self, encode: Callable[[bytes], np.ndarray], control_tokens: list[str]) -> None:
        self._encode = encode
        tokens = [token.encode("utf-8") for token in control_tokens]
        # a search for one byte is far quicker than a pattern, so the pattern runs only where a token may begin
        self._beginnings = {token[:1] for token in tokens}
        self._control = re.compile(b"|".join(map(re.escape, tokens)) or rb"(?!)")

    def answer(self, question: list[bytes], questions: BinaryIO, answers: BinaryIO) -> None:
        """A question is [b"texts", lengths, content] or [b"block", form, content(, lengths)]."""

        def encode(texts: list[bytes]) -> list[np.ndarray]:
            spelled = [number for number, text in enumerate(texts) if self._spells_control(text)]
            if not spelled:
                return [self._encode(text) for text in texts]
            send_texts(answers, b"texts", [texts[number] for number in spelled])
            _, lengths, ids = receive(questions)
            known = dict(
                zip(spelled, split(np.frombuffer(ids, np.uint32), np.frombuffer(lengths, np.int64)), strict=True)
            )
            return [known[number] if number in known else self._encode(text) for number, text in enumerate(texts)]

        if question[0] == b"texts":
            send_ids(answers, encode(split(question[2], np.frombuffer(question[1], np.int64))))
            return
        form = Form(**json.loads(question[1]))
        lengths = np.frombuffer(question[3], np.int64).tolist() if len(question) > 3 else None
        done = encode_block(Block(question[2], lengths), form, encode)
        counts = [done.text_bytes, done.empty, [(bad.row, str(bad)) for bad in done.bad]]
        tokens = done.tokens
        if len(tokens) == 0 or tokens.max() < 1 << 16:
            tokens = tokens.astype(np.uint16)  # half as much to hand over
        send(
            answers, b"block", tokens.dtype.str.encode(), tokens, done.lengths, done.hashes, json.dumps(counts).encode()
        )

    def _spells_control(self, text: bytes) -> bool:
        return any(beginning in text for beginning in self._beginnings) and self._control.search(text) is not None


def main() -> None:
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    kind, content, control_tokens = receive(questions)
    try:
        import gigatoken

        of_sentencepiece = kind == b"sentencepiece"
        load = gigatoken.Tokenizer.from_sentencepiece if of_sentencepiece else gigatoken.Tokenizer.from_json
        encoder = _Encoder(load(content).backend.encode, json.loads(control_tokens))
    except ImportError:
        send(answers, b"gigatoken is not installed (pip install gigatoken makes this several times faster)")
        return
    except Exception as error:  # from its Rust part: whatever it does not support
        reason = " ".join(str(error).split())[:120]
        send(answers, f"gigatoken does not take this vocabulary ({reason})".encode())
        return
    send(answers, b"")
    _serve_all(encoder, [tuple(map(int, pair.split(","))) for pair in sys.argv[1:]])


def _serve_all(encoder: _Encoder, pairs: list[tuple[int, int]]) -> None:
    """A fork for each pair of descriptors, until each has ended."""
    gc.collect()  # what is left of loading
    gc.disable()  # nothing after it refers to itself, and a collection would write to pages that the forks share
    limit = _resident() + _MEMORY
    serving: dict[int, tuple[int, int]] = {}
    todo = list(pairs)
    while todo or serving:
        for pair in todo:
            child = os.fork()
            if child == 0:
                _close(*(other for other in pairs if other != pair))  # else the parent would not see them end
                os._exit(_serve(encoder, *pair, limit))
            serving[child] = pair
        child, status = os.wait()
        pair = serving.pop(child)
        todo = [pair] if os.waitstatus_to_exitcode(status) == _GROWN else []
        if not todo:
            pairs.remove(pair)
            _close(pair)


def _serve(encoder: _Encoder, read_end: int, write_end: int, limit: int) -> int:
    """Answer until memory is above `limit` bytes (then _GROWN) or the questions end. Nothing is read ahead."""
    with open(read_end, "rb") as questions, open(write_end, "wb") as answers:
        while _resident() <= limit:
            try:
                question = receive(questions)
            except EOFError:
                return 0
            encoder.answer(question, questions, answers)
    return _GROWN


def _close(*pairs: tuple[int, int]) -> None:
    for pair in pairs:
        for descriptor in pair:
            os.close(descriptor)


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


if __name__ == "__main__":
    main()
