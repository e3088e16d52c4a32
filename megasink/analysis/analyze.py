"""From a request to a report: find the checkpoints, measure each beside its null on the same tokens, draw."""

import importlib.metadata
import platform
from pathlib import Path

import torch
from tqdm import tqdm

import megasink
from megasink.analysis.bootstrap import compare
from megasink.analysis.checks import check_model
from megasink.analysis.figures import check_figure_names, draw_figures
from megasink.analysis.files import check_writable
from megasink.analysis.measure import measure
from megasink.analysis.measured import MeasuredModel, Measurement
from megasink.analysis.quantization import quantization_losses
from megasink.analysis.report import console_table, write_report
from megasink.analysis.request import AnalysisRequest, parse_count, parse_device, parse_lengths, parse_pair
from megasink.analysis.section import Section
from megasink.analysis.source import Source, find_source, load_model, untrained_model
from megasink.analysis.tokens import TokenSequences, check_vocabulary, read_tokens
from megasink.analysis.trajectory import read_trajectory
from megasink.errors import UserError
from megasink.model.llama import Llama

_SAME_AT_EVERY_LENGTH = {"13", "steps"}


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
    device = parse_device(request.device)
    sources = [find_source(Path(path)) for path in request.checkpoints]
    labels = _labels(request, sources)
    pair = parse_pair(request.compare, labels)
    settings = _read_settings(request, sources[0])
    for label, source in zip(labels, sources, strict=True):
        for sequences in settings:
            check_vocabulary(sequences, source.config.model.vocab_size, label, request.data)
    if request.quant and len(settings[0].samples) < 2:
        raise UserError("--quant needs two sequences at least, one to calibrate on and one to evaluate; raise --tokens")
    check_writable(Path(request.out))

    for sequences in settings:
        print(f"{sequences.title}: {sequences.num_tokens:,} tokens, {sequences.description}")
    print(f"measuring {', '.join(labels)}, each beside its untrained null, on {device}", flush=True)
    sections = []
    for sequences, models in zip(settings, _measure_all(request, labels, sources, settings, device), strict=True):
        print(f"\n{sequences.title}\n{console_table(models)}")
        comparison = compare(*(models[labels.index(label)] for label in pair)) if pair else []
        drawings = draw_figures(models, figures, leave_out=_SAME_AT_EVERY_LENGTH if sections else set())
        sections.append(Section(sequences, models, drawings, comparison))
    for model in sections[0].models:
        print(_checks_line(model))
    print(f"\nreport: {write_report(Path(request.out), sections, _about(request, device, command))}")


def _read_settings(request: AnalysisRequest, first: Source) -> list[TokenSequences]:
    """The same text in every length and with and without BOS, as asked for."""
    lengths = parse_lengths(request.seq_length or str(first.config.model.seq_length))
    begins = {"off": [False], "on": [True], "both": [False, True]}[request.bos]
    count = parse_count(request.tokens)
    return [
        read_tokens(request.data, request.tokenizer, first.config, length, count, bos)
        for length in lengths
        for bos in begins
    ]


def _measure_all(
    request: AnalysisRequest,
    labels: list[str],
    sources: list[Source],
    settings: list[TokenSequences],
    device: torch.device,
) -> list[list[MeasuredModel]]:
    """Every model at every setting, [setting][model]; one model is loaded at a time."""
    measured: list[list[MeasuredModel]] = [[] for _ in settings]
    total = 2 * len(sources) * sum(sequences.num_tokens for sequences in settings)
    with tqdm(total=total, unit="tok", unit_scale=True, disable=None) as bar:

        def measure_settings(model: Llama, step: int | None) -> list[Measurement]:
            return [measure(model, sequences.samples, step, bar.update) for sequences in settings]

        for label, source in zip(labels, sources, strict=True):
            bar.set_description(label)
            model = load_model(source.config.model, source.folder, device)
            details = _details(source, model)
            checks = check_model(model, settings[0].samples[0])
            trained = measure_settings(model, source.step)
            quantized = quantization_losses(model, settings[0].samples) if request.quant else []
            bar.set_description(f"{label}, untrained")
            model, null_source = untrained_model(source, device)
            untrained = measure_settings(model, 0)
            trajectory = read_trajectory(source)
            about = (null_source, str(source.folder), details, trajectory, checks, quantized)
            for setting, *pair in zip(measured, trained, untrained, strict=True):
                setting.append(MeasuredModel(label, *pair, *about))
    return measured


def _checks_line(model: MeasuredModel) -> str:
    failed = [
        f"{check.name}: {check.error:.2g} (limit {check.limit:.2g})" for check in model.checks if not check.passed
    ]
    done = sum(check.error is not None for check in model.checks)
    return f"{model.label}: {'; '.join(failed) + ' FAILED' if failed else f'all {done} integrity checks passed'}"


def _labels(request: AnalysisRequest, sources: list[Source]) -> list[str]:
    labels = list(request.label) or [(source.run_folder or source.folder).resolve().name for source in sources]
    if len(labels) != len(sources):
        raise UserError(f"--label gives {len(labels)} names for {len(sources)} checkpoints; give one each")
    if len(set(labels)) < len(labels):
        raise UserError(f"--label {' '.join(labels)}: two checkpoints have the same name; give each its own")
    return labels


def _details(source: Source, model: Llama) -> dict[str, str]:
    config = source.config.model
    width = f"{config.num_layers} layers, width {config.hidden_size}"
    heads = f"{config.num_attention_heads} query heads, {config.num_key_value_heads} key-value heads"
    return {
        "step": "not stated" if source.step is None else f"{source.step:,}",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "shape": f"{width}, {heads} of {config.kv_channels}, vocabulary {config.vocab_size:,}",
        "V-scale": config.v_scale,
    }


def _about(request: AnalysisRequest, device: torch.device, command: str) -> dict[str, str]:
    libraries = ("torch", "numpy", "matplotlib")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    return {
        "data": request.data,
        "precision": f"fp32, forward and backward, on {device}",
        "loss": "mean cross entropy over these tokens; gradients are those of this mean",
        "sink position": "0, the first token of each sequence",
        "command": command,
        "versions": f"megasink {megasink.__version__}, {versions}, Python {platform.python_version()}",
    }
