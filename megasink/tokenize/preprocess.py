"""Text to Megatron's `.bin/.idx` with a manifest: cut into units, each finished or not, then merged."""

import dataclasses
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from megasink.data.build import SPLITS, parse_split
from megasink.data.indexed import idx_path
from megasink.data.manifest import SCHEMA, Manifest, read_manifest
from megasink.errors import UserError
from megasink.tokenize.blocks import Form
from megasink.tokenize.documents import Reader, Segment
from megasink.tokenize.fast import GigatokenTokenizer, fastest
from megasink.tokenize.merge import input_digest, merge_split, publish
from megasink.tokenize.options import PreprocessConfig
from megasink.tokenize.parts import Counts, Encoder, read_part, write_part
from megasink.tokenize.pipeline import encoded_units
from megasink.tokenize.plan import Plan, cut, describe
from megasink.tokenize.progress import Progress
from megasink.tokenize.sources import SourceFile, find_sources, protect_inputs
from megasink.tokenize.summary import Summary
from megasink.tokenize.tokenizers import Tokenizer, load_tokenizer
from megasink.tokenize.workspace import Workspace

_MOST_FAST_ENCODERS = 4
_SAMPLE_BYTES = 1 << 20  # of the corpus, on which the fast encoder is checked


def preprocess(config: PreprocessConfig) -> Summary:
    """Tokenize the inputs into `config.output_prefix`; documents without text are left out and counted.

    Raises:
        UserError: anything wrong with the inputs, the tokenizer or the output; then no new file opens at the prefix.
    """
    began = time.perf_counter()
    index, count = config.job()
    reader = Reader(config.json_key, config.skip_bad_documents)
    sources, units = _corpus(config, reader)
    splits = ("all",) if config.split is None else SPLITS
    protect_inputs(sources, config.output_prefix, [_prefix(config, split) for split in splits])
    reference = load_tokenizer(config.tokenizer, config.workers)
    tokenizer = _choose_library(config, reference, reader, units)
    try:
        encoder = _encoder(config, tokenizer)
        plan = Plan(units, _settings(config, sources, tokenizer))
        if (config.resume or config.merge) and (done := _already_done(config, encoder, plan)) is not None:
            return done
        summary = _run(config, plan, range(index, len(units), count), reader, encoder)
    finally:
        _end_processes(tokenizer)
    summary.seconds = time.perf_counter() - began
    return summary


def _run(config: PreprocessConfig, plan: Plan, numbers: range, reader: Reader, encoder: Encoder) -> Summary:
    """Make the units `numbers` (unless --merge), then merge all (unless --shard)."""
    workspace = Workspace(config.output_prefix, plan)
    workspace.open(create=not config.merge)
    summary = Summary(library=encoder.tokenizer.library)
    if not config.merge:
        try:
            with workspace.locked(f"shard-{(config.shard or 'all').replace('/', '-of-')}"):
                _make_units(config, plan, numbers, workspace.folder, reader, encoder, summary)
        except BaseException as error:
            if config.shard is None:
                workspace.remove_if_nothing_is_finished()
            if isinstance(error, KeyboardInterrupt) and workspace.folder.exists():
                print(f"megasink: stopped; {workspace.folder} keeps what is finished: --resume", file=sys.stderr)
            raise
    _end_processes(encoder.tokenizer)  # their memory is the merge's to use
    if config.shard is None:
        with workspace.locked("merge"):
            _merge(config, plan, workspace, encoder, summary)
    return summary


def _end_processes(tokenizer: Tokenizer) -> None:
    if isinstance(tokenizer, GigatokenTokenizer):
        tokenizer.close()


def _make_units(
    config: PreprocessConfig,
    plan: Plan,
    numbers: range,
    folder: Path,
    reader: Reader,
    encoder: Encoder,
    summary: Summary,
) -> None:
    finished = {number: counts for number in numbers if (counts := read_part(folder, number, encoder)) is not None}
    if finished and not config.resume:
        raise UserError(
            f"{folder} holds {len(finished)} finished units of an earlier run: add --resume to keep them, or remove it"
        )
    for counts in finished.values():
        summary.add(counts, made_now=False)
    todo = [number for number in numbers if number not in finished]
    total = sum(segment.size for number in todo for segment in plan.units[number])
    with (
        ThreadPoolExecutor(encoder.tokenizer.num_calls) as executor,
        Progress(total or None) as progress,
    ):
        units = encoded_units([plan.units[number] for number in todo], reader, encoder, executor)
        for number, blocks in zip(todo, units, strict=True):
            summary.add(write_part(folder, number, blocks, reader, encoder, progress.update), made_now=True)


def _merge(config: PreprocessConfig, plan: Plan, workspace: Workspace, encoder: Encoder, summary: Summary) -> None:
    folder = workspace.folder
    parts = [read_part(folder, number, encoder) for number in range(len(plan.units))]
    missing = [number for number, counts in enumerate(parts) if counts is None]
    if missing:
        raise UserError(
            f"--merge: {len(missing)} of {len(parts)} units are not finished (the first is unit {missing[0]}, of shard "
            f"{missing[0]} modulo n); run their --shard i/n jobs again with --resume"
        )
    if config.merge:
        for counts in parts:
            summary.add(counts, made_now=False)
    if summary.documents == 0:
        workspace.remove()
        raise UserError(
            f"no text in {' '.join(config.input) or config.hf_dataset}: an empty corpus cannot be trained on "
            f"({summary.empty} empty and {summary.bad} unreadable documents)"
        )
    merged = {}
    for split in encoder.splits:
        merged[split] = merge_split(folder, len(parts), split, encoder.tokenizer.vocab_size, config.deduplicate)
        summary.outputs[_prefix(config, split)] = (merged[split].documents, merged[split].tokens)
        summary.duplicates += merged[split].dropped
    for split, pair in merged.items():
        final = _prefix(config, split)
        publish(pair.prefix, final, _manifest(config, plan, encoder, summary, final, parts))
    workspace.remove()


def _corpus(config: PreprocessConfig, reader: Reader) -> tuple[list[SourceFile], list[list[Segment]]]:
    """Sources and units; a hub dataset's units are its own shards."""
    if config.hf_dataset is None:
        sources = find_sources(config.input)
        return sources, cut(sources, int(config.unit_mib * 2**20))
    if config.input:
        raise UserError("give --input or --hf-dataset, not both")
    from megasink.tokenize.tables import open_hub_dataset

    reader.hub = open_hub_dataset(config.hf_dataset, config.hf_config, config.hf_split)
    source = SourceFile(config.hf_dataset, "hub", "none", 0)
    return [source], [[Segment(source, shard, shard)] for shard in range(reader.hub.num_shards)]


def _choose_library(
    config: PreprocessConfig, reference: Tokenizer, reader: Reader, units: list[list[Segment]]
) -> Tokenizer:
    """The encoder, decided on the beginning of the corpus, so that every shard decides alike."""
    if config.encoder == "reference":
        return reference
    sample, size = [], 0
    lenient = dataclasses.replace(reader, skip_bad=True)
    for segment in (segment for unit in units for segment in unit):
        for text, _ in lenient.documents(segment):
            sample.append(text[:_SAMPLE_BYTES])
            size += len(sample[-1])
            if size >= _SAMPLE_BYTES:
                break
        if size >= _SAMPLE_BYTES:
            break
    # this process reads, hashes and writes meanwhile, and keeps no more of them busy
    tokenizer, reason = fastest(reference, min(config.workers, _MOST_FAST_ENCODERS), sample)
    if reason is not None:
        print(f"megasink: tokenizing with {tokenizer.library}: {reason}", file=sys.stderr)
    return tokenizer


def _encoder(config: PreprocessConfig, tokenizer: Tokenizer) -> Encoder:
    if config.prepend_bos and tokenizer.bos_id is None:
        raise UserError(f"--prepend-bos: the tokenizer {config.tokenizer} has no BOS token; drop the flag")
    if config.append_eod and tokenizer.eos_id is None:
        raise UserError(f"--append-eod: the tokenizer {config.tokenizer} has no EOS token; drop the flag")
    return Encoder(
        tokenizer=tokenizer,
        form=Form(
            json_key=config.json_key,
            before=[tokenizer.bos_id] if config.prepend_bos else [],
            after=[tokenizer.eos_id] if config.append_eod else [],
        ),
        splits=("all",) if config.split is None else SPLITS,
        shares=np.cumsum([1.0] if config.split is None else parse_split(config.split)),
        keep_hashes=config.deduplicate,
    )


def _settings(config: PreprocessConfig, sources: list[SourceFile], tokenizer: Tokenizer) -> dict[str, object]:
    inputs = [] if config.hf_dataset is not None else describe(sources)
    return config.deciding() | {
        "tokenizer_digest": tokenizer.digest,
        "encoder": tokenizer.library,
        "inputs": inputs,
    }


def _prefix(config: PreprocessConfig, split: str) -> str:
    return config.output_prefix if split == "all" else f"{config.output_prefix}_{split}"


def _manifest(
    config: PreprocessConfig, plan: Plan, encoder: Encoder, summary: Summary, prefix: str, parts: list[Counts]
) -> Manifest:
    documents, tokens = summary.outputs[prefix]
    return Manifest(
        schema=SCHEMA,
        tokenizer=config.tokenizer,
        tokenizer_digest=encoder.tokenizer.digest,
        vocab_size=encoder.tokenizer.vocab_size,
        bos_id=encoder.tokenizer.bos_id,
        eos_id=encoder.tokenizer.eos_id,
        prepend_bos=config.prepend_bos,
        append_eod=config.append_eod,
        documents=documents,
        tokens=tokens,
        corpus=summary.counts(),
        input_digest=input_digest(parts),
        settings=plan.settings,
    )


def _already_done(config: PreprocessConfig, encoder: Encoder, plan: Plan) -> Summary | None:
    """The summary of an earlier run with the same plan whose files are all in place."""
    manifests = {}
    for split in encoder.splits:
        prefix = _prefix(config, split)
        manifest = read_manifest(prefix)
        if manifest is None or manifest.settings != plan.settings or not idx_path(prefix).exists():
            return None
        manifests[prefix] = manifest
    summary = Summary(**next(iter(manifests.values())).corpus, found=True)
    summary.outputs = {prefix: (manifest.documents, manifest.tokens) for prefix, manifest in manifests.items()}
    return summary
