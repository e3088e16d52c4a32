"""From a request to a report: find the checkpoints, measure each beside its null on the same tokens, draw."""

from pathlib import Path

import torch
from tqdm import tqdm

from megasink.analysis.about import describe_model, describe_request
from megasink.analysis.bootstrap import compare, intervals
from megasink.analysis.checks import check_model
from megasink.analysis.families import check_length
from megasink.analysis.figures import check_figure_names, figure_names
from megasink.analysis.files import check_writable
from megasink.analysis.measure import measure
from megasink.analysis.measured import MeasuredModel, Measurement
from megasink.analysis.observer import AUTO, Wanted
from megasink.analysis.pictures import draw_pictures, prepare_workers, useful_workers
from megasink.analysis.quantization import quantization_losses
from megasink.analysis.report import console_summary, write_report
from megasink.analysis.request import (
    AnalysisRequest,
    parse_count,
    parse_device,
    parse_lengths,
    parse_pairs,
    parse_positions,
    parse_thresholds,
)
from megasink.analysis.section import Section
from megasink.analysis.source import MEGASINK, Source, find_source, load_subject, untrained_subject
from megasink.analysis.subject import Subject
from megasink.analysis.tokens import TokenSequences, check_tokenizers, check_vocabulary, read_tokens
from megasink.analysis.trajectory import add_analysed, read_trajectory
from megasink.errors import UserError

_SAME_AT_EVERY_LENGTH = {"13", "steps"}
_COUNTERFACTUAL_TOKENS = 16_384


def analyze(request: AnalysisRequest, command: str) -> None:
    """Write the report that `request` asks for and print its table.

    Raises:
        UserError: anything in the request that cannot work; checked before the first measurement where possible.
    """
    figures = None if request.figures is None else [name.strip() for name in request.figures.split(",")]
    check_figure_names(figures or [])
    wanted = Wanted(parse_positions(request.sink_pos), parse_thresholds(request.eps))
    if not request.checkpoints:
        raise UserError("name at least one run folder or checkpoint folder")
    device = parse_device(request.device)
    sources = [find_source(Path(path)) for path in request.checkpoints]
    labels = _labels(request, sources)
    pairs = parse_pairs(request.compare, labels)
    settings = _read_settings(request, sources[0])
    _check(request, labels, sources, settings)
    if not request.out:
        raise UserError("--out is empty; name a folder")
    check_writable(Path(request.out))

    for sequences in settings:
        print(f"{sequences.title}: {sequences.num_tokens:,} tokens, {sequences.description}")
    beside = "" if request.null == "none" else ", each beside its untrained null,"
    names = figure_names(figures, request.metrics)
    workers = useful_workers(len(names))
    if workers > 1:
        prepare_workers()
    print(f"measuring {', '.join(labels)}{beside} on {device}", flush=True)
    sections = []
    for sequences, models in zip(
        settings, _measure_all(request, labels, sources, settings, device, wanted), strict=True
    ):
        if not sections:
            add_analysed(models, sources)
        comparisons = [compare(*(models[labels.index(label)] for label in pair)) for pair in pairs]
        shown = [name for name in names if not sections or name not in _SAME_AT_EVERY_LENGTH]
        pictures = draw_pictures(models, shown, workers)
        sections.append(Section(sequences, models, pictures, comparisons, [intervals(model) for model in models]))
        print(f"\n{console_summary(sections[-1])}")
    for model in sections[0].models:
        print(_checks_line(model))
    about = describe_request(request, device, command, settings)
    print(f"peak memory: {about['peak memory']}")
    print(f"\nreport: {write_report(Path(request.out), sections, about)}")


def _read_settings(request: AnalysisRequest, first: Source) -> list[TokenSequences]:
    """The same text in every length and with and without BOS, as asked for."""
    lengths = parse_lengths(request.seq_length or str(first.config.model.seq_length))
    trained = first.config.data.bos_first
    begins = {"auto": [trained], "off": [False], "on": [True], "both": [False, True]}[request.bos]
    count = parse_count(request.tokens)
    return [
        read_tokens(request.data, request.tokenizer, first.config, length, count, bos)
        for length in lengths
        for bos in begins
    ]


def _check(request: AnalysisRequest, labels: list[str], sources: list[Source], settings: list[TokenSequences]) -> None:
    """Raise UserError for models, texts and positions that do not go together."""
    furthest = max((position for position in parse_positions(request.sink_pos) if position != AUTO), default=0)
    if furthest >= (shortest := min(sequences.seq_length for sequences in settings)):
        raise UserError(f"--sink-pos {request.sink_pos}: sequences of {shortest} tokens have no position {furthest}")
    tokenizers = {label: source.config.data.tokenizer for label, source in zip(labels, sources, strict=True)}
    check_tokenizers(request.data, request.tokenizer, tokenizers)
    for label, source in zip(labels, sources, strict=True):
        for sequences in settings:
            check_vocabulary(sequences, source.config.model.vocab_size, label, request.data)
            if source.family != MEGASINK:
                check_length(source.folder, sequences.seq_length)
        if request.quant and source.family == "gpt2":
            raise UserError(f"--quant: {label} is a GPT-2, whose linear layers are not a Llama's; leave it out")
    if request.quant and len(settings[0].samples) < 2:
        raise UserError("--quant needs two sequences at least, one to calibrate on and one to evaluate; raise --tokens")


def _measure_all(
    request: AnalysisRequest,
    labels: list[str],
    sources: list[Source],
    settings: list[TokenSequences],
    device: torch.device,
    wanted: Wanted,
) -> list[list[MeasuredModel]]:
    """Every model at every setting, [setting][model]; one model is loaded at a time."""
    measured: list[list[MeasuredModel]] = [[] for _ in settings]
    backward = request.metrics != "forward"
    level = "full" if backward else "forward"
    subset = [_first_sequences(sequences) for sequences in settings] if backward else []
    passes = len(sources) * (1 if request.null == "none" else 2)
    total = passes * sum(sequences.num_tokens for sequences in settings)
    for part, sequences in zip(subset, settings, strict=False):
        total += len(sources) * part.num_tokens * (1 + (part.num_tokens < sequences.num_tokens))
    with tqdm(total=total, unit="tok", unit_scale=True, disable=None) as bar:

        def run(subject: Subject, sequences: TokenSequences, step: int | None, **options) -> Measurement:
            ids = sequences.document_ids
            return measure(subject, sequences.samples, step, bar.update, level, document_ids=ids, **options)

        for label, source in zip(labels, sources, strict=True):
            bar.set_description(label)
            subject = load_subject(source, device, stream=not backward)
            details = describe_model(source, subject)
            checks = check_model(subject, settings[0].samples[0], gradients=backward)
            trained = [run(subject, sequences, source.step, wanted=wanted) for sequences in settings]
            both_ways = []
            for part, sequences, measurement in zip(subset, settings, trained, strict=False):
                everything = len(part.samples) == len(sequences.samples)
                whole = measurement if everything else run(subject, part, source.step)
                cut = run(subject, part, source.step, detach_values=True)
                both_ways.append((whole.report, cut.report))
            quantized = []
            if request.quant:
                subject = subject if backward else load_subject(source, device)
                quantized = quantization_losses(subject, settings[0].samples)
            del subject
            untrained, null_source = [None] * len(settings), ""
            if request.null != "none":
                bar.set_description(f"{label}, untrained")
                subject, null_source = untrained_subject(source, device, not backward, request.null == "auto")
                untrained = [run(subject, sequences, 0, wanted=wanted) for sequences in settings]
                del subject
            for at, setting in enumerate(measured):
                setting.append(
                    MeasuredModel(
                        label,
                        trained[at],
                        untrained[at],
                        null_source,
                        str(source.folder),
                        details,
                        read_trajectory(source),
                        checks,
                        quantized,
                        *(both_ways[at] if both_ways else (None, None)),
                    )
                )
    return measured


def _first_sequences(sequences: TokenSequences) -> TokenSequences:
    """Those of the counterfactual."""
    return sequences.first(max(1, _COUNTERFACTUAL_TOKENS // sequences.seq_length))


def _checks_line(model: MeasuredModel) -> str:
    failed = [
        f"{check.name}: {check.error:.2g} (limit {check.limit:.2g})" for check in model.checks if not check.passed
    ]
    done = sum(check.error is not None for check in model.checks)
    return f"{model.label}: {'; '.join(failed) + ' FAILED' if failed else f'all {done} integrity checks passed'}"


def _labels(request: AnalysisRequest, sources: list[Source]) -> list[str]:
    """As given; by default the folders' names, with the step where several checkpoints are of one run."""
    labels = list(request.label)
    if not labels:
        runs = [(source.run_folder or source.folder).resolve() for source in sources]
        labels = [
            run.name if runs.count(run) == 1 else f"{run.name} step {source.step:,}"
            for run, source in zip(runs, sources, strict=True)
        ]
    if len(labels) != len(sources):
        raise UserError(f"--label gives {len(labels)} names for {len(sources)} checkpoints; give one each")
    for label in labels:
        if not (label.strip() and label.isprintable()):
            raise UserError(f"--label {label!r}: give a name of one line")
    if len(set(labels)) < len(labels):
        raise UserError(f"--label {' '.join(labels)}: two checkpoints have the same name; give each its own")
    return labels
