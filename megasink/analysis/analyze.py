"""From a request to a report: find the checkpoints, measure each beside its null on the same tokens, draw."""

import importlib.metadata
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

import megasink
from megasink.analysis.bootstrap import compare
from megasink.analysis.figures import check_figure_names, draw_figures
from megasink.analysis.files import check_writable
from megasink.analysis.measure import measure
from megasink.analysis.measured import MeasuredModel
from megasink.analysis.report import console_table, write_report
from megasink.analysis.source import Source, find_source, load_model, untrained_model
from megasink.analysis.tokens import TokenSequences, check_vocabulary, read_tokens
from megasink.analysis.trajectory import read_trajectory
from megasink.errors import UserError


@dataclass
class AnalysisRequest:
    """What to analyse and how; the flags of tools/analyze_ckpt.py."""

    checkpoints: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CKPT ...")]
    """Run folders (their newest checkpoint counts) or checkpoint folders."""
    data: str
    """Prefix of a .bin/.idx pair, or a text file (.jsonl or plain text)."""
    label: tuple[str, ...] = ()
    """One name per checkpoint; default: the folders' names."""
    tokens: str = "16k"
    """How many tokens to measure on: 16k is 16,000, 1M is 1,000,000."""
    seq_length: int | None = None
    """Tokens per sequence; default: what the first checkpoint was trained with."""
    tokenizer: str | None = None
    """Tokenizer of a text file; default: the one in the first checkpoint's configuration."""
    compare: str | None = None
    """Two labels, A:B; the report gives B minus A, paired by sequence."""
    sink_pos: int = 0
    """Position of the sink; only 0 so far."""
    figures: str | None = None
    """Figures to draw, by the paper's numbers: 6,7,13; default: all."""
    out: str = "report"
    """Folder for report.html, figures/ and the numbers."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto: a GPU if there is one."""


def analyze(request: AnalysisRequest, command: str) -> None:
    """Write the report that `request` asks for and print its table.

    Raises:
        UserError: anything in the request that cannot work; checked before the first measurement where possible.
    """
    figures = None if request.figures is None else [name.strip() for name in request.figures.split(",")]
    check_figure_names(figures or [])
    if request.sink_pos != 0:
        raise UserError(f"--sink-pos {request.sink_pos}: only position 0 is measured so far")
    if not request.checkpoints:
        raise UserError("name at least one run folder or checkpoint folder")
    device = _device(request.device)
    sources = [find_source(Path(path)) for path in request.checkpoints]
    labels = _labels(request, sources)
    pair = _pair(request.compare, labels)
    config = sources[0].config
    seq_length = request.seq_length or config.model.seq_length
    if seq_length < 2:
        raise UserError(f"--seq-length {seq_length}: a sequence needs at least two tokens")
    sequences = read_tokens(request.data, request.tokenizer, config, seq_length, parse_count(request.tokens))
    for label, source in zip(labels, sources, strict=True):
        check_vocabulary(sequences, source.config.model.vocab_size, label, request.data)
    check_writable(Path(request.out))

    count, length = len(sequences.samples), sequences.samples.shape[1] - 1
    print(
        f"measuring {', '.join(labels)} on {count * length:,} tokens ({sequences.description}) on {device}", flush=True
    )
    models = _measure_all(labels, sources, sequences, device)
    print(console_table(models))
    chosen = [models[labels.index(label)] for label in pair]
    comparison = compare(*chosen) if chosen else []
    drawings = draw_figures(models, figures)
    page = write_report(Path(request.out), models, drawings, comparison, _about(sequences, device, command))
    print(f"report: {page}")


def _measure_all(
    labels: list[str], sources: list[Source], sequences: TokenSequences, device: torch.device
) -> list[MeasuredModel]:
    models = []
    with tqdm(total=2 * len(sources) * len(sequences.samples), unit="seq", disable=None) as bar:
        for label, source in zip(labels, sources, strict=True):
            bar.set_description(label)
            model = load_model(source.config.model, source.folder, device)
            trained = measure(model, sequences.samples, source.step, bar.update)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            bar.set_description(f"{label}, untrained")
            model, null_source = untrained_model(source, device)
            untrained = measure(model, sequences.samples, 0, bar.update)
            details = _details(source, parameters)
            trajectory = read_trajectory(source)
            models.append(
                MeasuredModel(label, trained, untrained, null_source, str(source.folder), details, trajectory)
            )
    return models


def _labels(request: AnalysisRequest, sources: list[Source]) -> list[str]:
    labels = list(request.label) or [(source.run_folder or source.folder).resolve().name for source in sources]
    if len(labels) != len(sources):
        raise UserError(f"--label gives {len(labels)} names for {len(sources)} checkpoints; give one each")
    if len(set(labels)) < len(labels):
        raise UserError(f"--label {' '.join(labels)}: two checkpoints have the same name; give each its own")
    return labels


def _pair(wanted: str | None, labels: list[str]) -> tuple[str, ...]:
    """The two labels of --compare, or nothing."""
    if wanted is None:
        return ()
    first, _, second = wanted.partition(":")
    if first not in labels or second not in labels or first == second:
        raise UserError(f"--compare {wanted}: give two different labels as A:B; labels are {', '.join(labels)}")
    return first, second


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: not available here; use auto, cpu or cuda") from None
    return device


def parse_count(text: str) -> int:
    """`128k` -> 128000, `1M` -> 1000000, `4096` -> 4096; raises UserError otherwise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.strip())
    if match is None:
        raise UserError(f"--tokens {text}: give a number, for example 16k or 1M")
    return round(float(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()])


def _details(source: Source, parameters: int) -> dict[str, str]:
    model = source.config.model
    heads = f"{model.num_attention_heads} query and {model.num_key_value_heads} key-value heads of {model.kv_channels}"
    return {
        "step": "not stated" if source.step is None else f"{source.step:,}",
        "parameters": f"{parameters:,}",
        "shape": f"{model.num_layers} layers, width {model.hidden_size}, {heads}, vocabulary {model.vocab_size:,}",
        "V-scale": model.v_scale,
    }


def _about(sequences: TokenSequences, device: torch.device, command: str) -> dict[str, str]:
    count, length = sequences.samples.shape[0], sequences.samples.shape[1] - 1
    libraries = ("torch", "numpy", "matplotlib")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    return {
        "tokens": f"{count * length:,} in {count:,} sequences of {length:,}, the same for all models",
        "data": sequences.description,
        "data digest": f"SHA-256 {sequences.digest}...",
        "precision": f"fp32, forward and backward, on {device}",
        "loss": "mean cross entropy over these tokens; gradients are those of this mean",
        "sink position": "0, the first token of each sequence",
        "command": command,
        "versions": f"megasink {megasink.__version__}, {versions}, Python {platform.python_version()}",
    }
