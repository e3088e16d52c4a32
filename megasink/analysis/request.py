"""The flags of tools/analyze_ckpt.py, and what their texts mean."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro

from megasink.errors import UserError


@dataclass
class AnalysisRequest:
    """What to analyse and how."""

    checkpoints: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CKPT ...")]
    """Run folders (their newest checkpoint counts), checkpoint folders, or Hugging Face folders with a Llama."""
    data: str
    """Prefix of a .bin/.idx pair, or a text file (.jsonl or plain text)."""
    label: tuple[str, ...] = ()
    """One name per checkpoint; default: the folders' names."""
    tokens: str = "16k"
    """How many tokens to measure on: 16k is 16,000, 1M is 1,000,000."""
    seq_length: str | None = None
    """Tokens per sequence, one length or several: 64,1024; default: what the first checkpoint was trained with."""
    bos: Literal["off", "on", "both"] = "off"
    """on: every sequence begins with the tokenizer's BOS; off: with whatever token the text has there."""
    tokenizer: str | None = None
    """Tokenizer of a text file; default: the one in the first checkpoint's configuration."""
    compare: str | None = None
    """Two labels, A:B; the report gives B minus A, paired by sequence."""
    quant: bool = False
    """Also perplexity in bf16 and with simulated 8-bit weights and activations, one scale per token or one for all."""
    sink_pos: int = 0
    """Position of the sink; only 0 so far."""
    figures: str | None = None
    """Figures to draw, by the paper's numbers: 6,7,13; default: all."""
    out: str = "report"
    """Folder for report.html, figures/ and the numbers."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto: a GPU if there is one."""


def parse_count(text: str) -> int:
    """`128k` -> 128000, `1M` -> 1000000, `4096` -> 4096; raises UserError otherwise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.strip())
    if match is None:
        raise UserError(f"--tokens {text}: give a number, for example 16k or 1M")
    return round(float(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()])


def parse_lengths(text: str) -> list[int]:
    """`64,1024` -> [64, 1024]; raises UserError for anything but different whole numbers from 2 on."""
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seq-length {text}: give one length or several, for example 64,1024") from None
    if min(lengths) < 2:
        raise UserError(f"--seq-length {text}: a sequence needs at least two tokens")
    if len(set(lengths)) < len(lengths):
        raise UserError(f"--seq-length {text}: a length is named twice")
    return lengths


def parse_pair(text: str | None, labels: list[str]) -> tuple[str, ...]:
    """The two labels of `A:B`, or nothing for None; raises UserError unless they are two of `labels`."""
    if text is None:
        return ()
    first, _, second = text.partition(":")
    if first not in labels or second not in labels or first == second:
        raise UserError(f"--compare {text}: give two different labels as A:B; labels are {', '.join(labels)}")
    return first, second


def parse_device(name: str) -> torch.device:
    """The device that `name` says, which must be there; raises UserError otherwise."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: not available here; use auto, cpu or cuda") from None
    return device
