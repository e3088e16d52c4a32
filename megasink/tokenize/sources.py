"""Which files a corpus is made of: files, folders and globs, in a fixed order, each once."""

import glob
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megasink.data.manifest import manifest_path, read_manifest
from megasink.errors import UserError

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".md": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}


@dataclass(frozen=True)
class SourceFile:
    """One input file. `format` is jsonl, text, parquet or arrow; `compression` gz, zst or none."""

    path: str
    format: str
    compression: str
    size: int


def find_sources(inputs: tuple[str, ...]) -> list[SourceFile]:
    """Every file that `--input` names, in the order given; a folder's or pattern's files sorted by path.

    In a folder (searched to any depth, links followed once) only known suffixes count: .jsonl .ndjson .json .txt .md,
    also with .gz or .zst, .parquet and .arrow. A file named outright with another suffix is plain text. A folder that
    `datasets` saved is read in its own order. Of one folder or pattern a file with several names (links) is read once,
    by the first of them.

    Raises:
        UserError: nothing there, unreadable, or the same data twice (a file of two inputs, or x.jsonl and x.jsonl.gz).
    """
    if not inputs:
        raise UserError("--input: name at least one file, folder or pattern (or --hf-dataset)")
    sources: list[SourceFile] = []
    first_name: dict[tuple[int, int], str] = {}
    for name in inputs:
        of_this_name: dict[tuple[int, int], str] = {}
        for path in _expand(name):
            status = _status(path)
            identity = (status.st_dev, status.st_ino)
            if identity in of_this_name:
                continue  # a link beside what it links to, as package and header folders have them
            if identity in first_name:
                raise UserError(f"--input {path}: the same file as {first_name[identity]}; every file is read once")
            of_this_name[identity] = path
            form, compression = classify(path)
            sources.append(SourceFile(path, form, compression, status.st_size))
        first_name |= of_this_name
    _refuse_twins(sources)
    return sources


def protect_inputs(sources: list[SourceFile], output_prefix: str, prefixes: list[str]) -> None:
    """Nothing that is not ours is overwritten: corpus.json as input and corpus as prefix would do that.

    Raises:
        UserError: `output_prefix` is no name, or one of the outputs `prefixes` is in the way of something.
    """
    if output_prefix.endswith("/") or not output_prefix:
        raise UserError(f"--output-prefix {output_prefix}: end it with a name, for example data/train")
    for prefix in prefixes:
        if manifest_path(prefix).exists() and read_manifest(prefix) is None:
            raise UserError(
                f"{manifest_path(prefix)} is in the way (the manifest goes there); choose another --output-prefix"
            )
        outputs = {f"{prefix}{suffix}" for suffix in (".bin", ".idx")}
        if clash := [source.path for source in sources if source.path in outputs]:
            raise UserError(f"--output-prefix {output_prefix} would overwrite the input {clash[0]}")


def classify(path: str) -> tuple[str, str]:
    """(format, compression) by suffix; an unknown suffix is plain text."""
    inner, compression = path, "none"
    if Path(path).suffix in COMPRESSIONS:
        compression = COMPRESSIONS[Path(path).suffix]
        inner = str(Path(path).with_suffix(""))
    return FORMATS.get(Path(inner).suffix, "text"), compression


def _status(path: str) -> os.stat_result:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise UserError(f"--input {path}: not a file (a pipe or device); write its content to a file first")
        open(path, "rb").close()  # may it be read?
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror}") from None
    return status


def _expand(name: str) -> Iterator[str]:
    if os.path.isdir(name):
        found = sorted(_folder(Path(name)))
        if not found:
            known = " ".join(FORMATS)
            raise UserError(f"--input {name}: no file in this folder ends in {known} (or these with .gz or .zst)")
        yield from found
    elif os.path.lexists(name) or not glob.has_magic(name):
        yield name
    else:
        found = sorted(path for path in glob.glob(name, recursive=True) if not os.path.isdir(path))
        if not found:
            raise UserError(f"--input {name}: the pattern matches no file")
        yield from found


def _folder(folder: Path) -> Iterator[str]:
    """Files of known suffix below a folder; each real folder is entered once, so that link loops end."""
    entered = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        if "dataset_dict.json" in files:
            splits = ", ".join(sorted(folders))
            raise UserError(f"--input {parent}: a DatasetDict of several splits ({splits}); name one of its folders")
        if "state.json" in files and "dataset_info.json" in files:
            yield from _saved_dataset(Path(parent))
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            suffix = Path(name.removesuffix(Path(name).suffix)).suffix if Path(name).suffix in COMPRESSIONS else None
            if not name.startswith(".") and (suffix or Path(name).suffix) in FORMATS:
                yield os.path.join(parent, name)


def _saved_dataset(folder: Path) -> list[str]:
    """Arrow files of a folder written by `datasets`' save_to_disk (its caches lie beside them and do not count)."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [str(folder / entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--input {folder}: a saved dataset with a damaged state.json ({error!r})") from None


def _refuse(error: OSError) -> None:
    raise UserError(f"--input {error.filename}: {error.strerror}")


def _refuse_twins(sources: list[SourceFile]) -> None:
    """x.jsonl and x.jsonl.gz are the same data, most likely: tokenizing both would double it silently."""
    plain = {source.path for source in sources if source.compression == "none"}
    for source in sources:
        if source.compression != "none" and source.path.rpartition(".")[0] in plain:
            raise UserError(
                f"--input {source.path}: {Path(source.path).stem} lies beside it, the same data twice; name one of them"
            )
