"""Text to tokens: any folder or JSONL, or a dataset of a hub; one process for every four cores."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from megasink.data.atomic import write_atomic
from megasink.errors import UserError
from megasink.tokenize.sources import find_sources
from megasink.tokenize.train import TrainTokenizerConfig, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
_CORES_PER_PROCESS = 4  # one of them reads and writes, four encode


@dataclass(frozen=True)
class TextChoice:
    """What decides the tokens."""

    text: tuple[str, ...]
    glob: tuple[str, ...]
    hf_dataset: str | None
    hf_config: str | None
    hf_mib: float
    tokenizer: str | None
    vocab_size: int
    tokenizer_mib: float
    valid_share: float


def prepare(folder: Path, choice: TextChoice) -> dict:
    """Make `folder`/tokenizer.model, train.* and valid.*, or find them made; returns the training part's manifest.

    Documents with equal text are kept once. Which part a document goes to is decided by the hash of its text.

    Raises:
        UserError: no text, other text than the folder was made of, or what the tools below say.
    """
    stamp = folder / "prepared.json"
    wanted = json.loads(json.dumps(asdict(choice)))
    if stamp.is_file():
        if json.loads(stamp.read_text()) != wanted:
            raise UserError(f"{folder} was made from other text or settings; choose another --out")
        return json.loads((folder / "tokens_train.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    inputs = [str(_download(folder, choice))] if choice.hf_dataset else text_patterns(choice.text, choice.glob)
    _tokenize(folder, inputs, str(_tokenizer(folder, inputs, choice)), choice.valid_share)
    write_atomic(stamp, json.dumps(wanted).encode())
    return json.loads((folder / "tokens_train.json").read_text())


def text_patterns(text: tuple[str, ...], globs: tuple[str, ...]) -> list[str]:
    """Files as they are; of a folder what `globs` name at any depth, or (without any) all text that is known as such.

    Raises:
        UserError: nothing given, or nothing there.
    """
    if not text:
        raise UserError("give --text FILES OR FOLDERS, or --hf-dataset NAME")
    patterns = []
    for name in text:
        if not os.path.exists(name):
            raise UserError(f"--text {name}: no such file or folder")
        if os.path.isdir(name) and globs:
            found = [f"{name.rstrip('/')}/**/{pattern}" for pattern in globs]
            patterns += [pattern for pattern in found if next(Path(name).glob(f"**/{Path(pattern).name}"), None)]
        else:
            patterns.append(name)
    if not patterns:
        raise UserError(f"--glob {' '.join(globs)}: no such file in {' '.join(text)}")
    return patterns


def _download(folder: Path, choice: TextChoice) -> Path:
    """The first `hf_mib` MiB of a dataset as JSONL."""
    import datasets  # seconds to import

    path = folder / "text.jsonl"
    if path.is_file():
        return path
    temporary, size = path.with_suffix(".part"), 0
    try:
        rows = datasets.load_dataset(choice.hf_dataset, choice.hf_config, split="train", streaming=True)
        with open(temporary, "w", encoding="utf-8") as file:
            for row in rows:
                size += file.write(json.dumps({"text": row["text"]}) + "\n")
                if size >= choice.hf_mib * 2**20:
                    break
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--hf-dataset {choice.hf_dataset}: {error}; without a hub use --text") from None
    temporary.replace(path)
    return path


def _tokenizer(folder: Path, inputs: list[str], choice: TextChoice) -> Path:
    """The one given, or one trained on files taken evenly over the text, about `tokenizer_mib` MiB of them."""
    path = folder / "tokenizer.model"
    if path.is_file():
        return path
    if choice.tokenizer is not None:
        try:
            write_atomic(path, Path(choice.tokenizer).read_bytes())
        except OSError as error:
            raise UserError(f"--tokenizer {choice.tokenizer}: {error.strerror}") from None
        return path
    sources = find_sources(tuple(inputs))
    share = max(1, round(sum(source.size for source in sources) / (choice.tokenizer_mib * 2**20)))
    readable = [source.path for source in sources[::share] if _is_utf8(source.path, source.compression)]
    if not readable:
        raise UserError(f"no UTF-8 text among the first files of {' '.join(inputs)}")
    print(f"tokenizer of {choice.vocab_size} entries, trained on {len(readable)} of {len(sources)} files", flush=True)
    return train_tokenizer(
        TrainTokenizerConfig(
            input=tuple(readable),
            output=str(folder / "tokenizer"),
            vocab_size=choice.vocab_size,
            max_sentences=200_000,
            num_threads=len(os.sched_getaffinity(0)),
        )
    )


def _is_utf8(path: str, compression: str) -> bool:
    """Whether a plain file can be read as text; the tokenizer's trainer stops at the first that cannot."""
    if compression != "none":
        return True
    try:
        return "\0" not in Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False


def _tokenize(folder: Path, inputs: list[str], tokenizer: str, valid_share: float) -> None:
    """tools/preprocess_data.py, in as many shards as the cores feed, then merged."""
    cores = len(os.sched_getaffinity(0))
    count = max(1, cores // _CORES_PER_PROCESS)
    split = f"{1 - valid_share:g},{valid_share:g},0"
    command = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", *inputs]
    command += ["--output-prefix", str(folder / "tokens"), "--tokenizer", tokenizer, "--split", split, "--resume"]
    command += ["--prepend-bos", "--append-eod", "--deduplicate", "--skip-bad-documents"]
    command += ["--workers", str(min(cores, _CORES_PER_PROCESS)), "--unit-mib", "16"]
    variables = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    if count > 1:
        shards = [subprocess.Popen([*command, "--shard", f"{i}/{count}"], env=variables) for i in range(count)]
        if any([shard.wait() for shard in shards]):
            raise UserError("tokenizing stopped; its reason stands above; the same command goes on")
        command.append("--merge")
    if subprocess.run(command, env=variables).returncode:
        raise UserError("tokenizing stopped; its reason stands above; the same command goes on")
