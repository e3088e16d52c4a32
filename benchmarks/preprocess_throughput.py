"""Tokenization speed beside the references, interleaved: python benchmarks/preprocess_throughput.py --help.

Each case is a process over the same JSONL; what it takes on a handful of documents (imports, loading the tokenizer) is
subtracted. CPU seconds are of the process and its children, so they hold on a busy machine, where wall time does not.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from megasink.config.cli import parse_cli
from megasink.errors import UserError, run_cli

ROOT = Path(__file__).parents[1]

BARE = """
import json, sys
model, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
texts = [json.loads(line)["text"] for line in open(path, encoding="utf-8")]
"""
BARE_SENTENCEPIECE = f"""{BARE}
import sentencepiece
encode = sentencepiece.SentencePieceProcessor(model_file=model).encode_as_numpy
for start in range(0, len(texts), 200):
    encode(texts[start : start + 200], num_threads=threads)
"""
BARE_GIGATOKEN = f"""{BARE}
import gigatoken
encode = gigatoken.Tokenizer.from_sentencepiece(model).encode
for text in texts:
    encode(text)
"""


@dataclass
class ThroughputConfig:
    """Time tools/preprocess_data.py, the bare libraries and Megatron's scripts on the same text."""

    corpus: str
    """JSONL file."""
    tokenizer: str
    """SentencePiece .model."""
    megabytes: float = 40
    """Of the corpus to use."""
    rounds: int = 3
    """Times each case is run; the median counts."""
    workers: int = 2
    """Threads of every case that has a choice, except Megatron's one worker."""
    megatron: str | None = None
    """Checkout of Megatron-LM (its wheel lacks these scripts); default: leave Megatron out."""
    huggingface: str | None = None
    """Folder with the same tokenizer for transformers; Megatron's fast script takes only that."""


@dataclass
class Cost:
    wall: float
    cpu: float
    peak_mib: float


def cases(config: ThroughputConfig) -> dict[str, list[str]]:
    """Name -> command; INPUT and OUTPUT stand for paths."""
    ours = [sys.executable, str(ROOT / "tools/preprocess_data.py"), "--input", "INPUT", "--output-prefix", "OUTPUT"]
    ours += ["--tokenizer", config.tokenizer, "--append-eod", "--workers", str(config.workers)]
    bare = [config.tokenizer, "INPUT", str(config.workers)]
    found = {
        "megasink, gigatoken": ours,
        "megasink, sentencepiece": [*ours, "--encoder", "reference"],
        "bare gigatoken": [sys.executable, "-c", BARE_GIGATOKEN, *bare],
        "bare sentencepiece": [sys.executable, "-c", BARE_SENTENCEPIECE, *bare],
    }
    if config.megatron is not None:
        common = ["--input", "INPUT", "--output-prefix", "OUTPUT", "--append-eod"]
        script = f"{config.megatron}/tools/preprocess_data"
        sentencepiece = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", config.tokenizer]
        found["Megatron preprocess_data.py"] = [
            *(sys.executable, f"{script}.py", *common, *sentencepiece, "--workers", "1")
        ]
        if config.huggingface is not None:
            fast = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", config.huggingface]
            found["Megatron preprocess_data_fast.py"] = [
                *(sys.executable, f"{script}_fast.py", *common, *fast, "--use-gigatoken")
            ]
    return found


def run_once(command: list[str], path: Path, folder: Path, config: ThroughputConfig) -> Cost:
    out = Path(tempfile.mkdtemp(dir=folder)) / "x"
    command = [{"INPUT": str(path), "OUTPUT": str(out)}.get(word, word) for word in command]
    python_path = [str(ROOT), *([config.megatron] if config.megatron else []), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(python_path), "RAYON_NUM_THREADS": str(config.workers)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = process.communicate()[0]
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != 0:
        raise UserError(f"{' '.join(command)[:200]} failed: {said[-400:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, after.ru_maxrss / 1024)


def head(corpus: str, size: float, path: Path) -> int:
    """Copy the first lines up to about `size` bytes; the bytes copied."""
    with open(corpus, "rb") as source, open(path, "wb") as target:
        while target.tell() < size and (line := source.readline()):
            target.write(line)
        return target.tell()


def main() -> None:
    config = parse_cli(ThroughputConfig, sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = head(config.corpus, config.megabytes * 1e6, folder / "whole.jsonl") / 1e6
        small = head(config.corpus, 1e5, folder / "small.jsonl") / 1e6
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases(config)}
        for number in range(config.rounds):
            for name, command in cases(config).items():
                start = run_once(command, folder / "small.jsonl", folder, config)
                whole = run_once(command, folder / "whole.jsonl", folder, config)
                rates = (size - small) / (whole.wall - start.wall), (size - small) / (whole.cpu - start.cpu)
                taken[name].append(rates)
                print(f"round {number}: {name}: {rates[0]:.1f} MB/s, {rates[1]:.1f} MB per CPU second", flush=True)
    first = {at: statistics.median(rates[at] for rates in taken["megasink, gigatoken"]) for at in (0, 1)}
    print("\n| case | MB/s | MB per CPU second | megasink is faster by (wall, CPU) |\n|---|---:|---:|---:|")
    for name, rates in taken.items():
        wall, cpu = (statistics.median(pair[at] for pair in rates) for at in (0, 1))
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {first[0] / wall:.2f} x, {first[1] / cpu:.2f} x |")


if __name__ == "__main__":
    run_cli(main)
