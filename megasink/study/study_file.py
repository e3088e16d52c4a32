"""The study file: YAML to runs, every mistake one line before anything starts."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict

from megasink.config import RunConfig
from megasink.config.checks import check_settings
from megasink.config.cli import NoKeyTwice, from_dict, parse_cli
from megasink.errors import UserError

_OURS = {"save", "seed", "auto-resume"}
_ORDER = ("data_path", "split", "valid_data_path", "seq_length", "global_batch_size")
"""Fields that decide, beside the seed, which samples a step reads."""


@dataclass
class StudyFile:
    """The keys of a study file. Values of flags and options are words, as on a command line."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    script: str
    """Launch script, a preset as examples/pretrain_1b.sh with its YAML beside it."""
    out: str
    """Folder of the study: a run folder for each arm and seed, logs, the page."""
    arms: dict[str, dict[str, str | list[str]]]
    """Name -> flags in which the arm differs."""
    seeds: list[int] = field(default_factory=lambda: [1234])
    """Each decides initial weights and data order."""
    flags: dict[str, str | list[str]] = field(default_factory=dict)
    """Flags of all arms; over the script's YAML."""
    baseline: str | None = None
    """The arm the others are compared with; default: the first."""
    same_data: bool = True
    """Refuse arms that would not read the same samples in the same order."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Options of sbatch. A file that has some is for Slurm unless --on says otherwise."""


@dataclass(frozen=True)
class StudyRun:
    """One arm with one seed."""

    arm: str
    seed: int
    folder: Path
    log: Path
    flags: tuple[str, ...]
    config: RunConfig

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Study:
    """A study file that was looked at: its runs are all arms of the first seed, then those of the next, and so on."""

    name: str
    script: Path
    out: Path
    baseline: str
    arms: list[str]
    runs: list[StudyRun]
    sbatch: dict[str, str]
    same_data: bool

    @property
    def page(self) -> Path:
        return self.out / "study.html"


def load_study(path: Path) -> Study:
    """Read a study file and resolve the configuration of every run in it.

    Raises:
        UserError: unreadable YAML, unknown keys, bad flags, arms that would not see the same data, runs in the output
            folder that were made with other settings.
    """
    file = from_dict(StudyFile, _read(path), str(path))
    script = Path(file.script)
    _check(file, script, path)
    base = ["--config", str(script.with_suffix(".yaml"))] if script.with_suffix(".yaml").is_file() else []
    out = Path(file.out).absolute()
    runs = []
    for seed in file.seeds:
        for arm, arm_flags in file.arms.items():
            name = f"{arm}_seed{seed}"
            flags = [*to_words(file.flags | arm_flags), "--seed", str(seed), "--save", str(out / name), "--auto-resume"]
            try:
                config = parse_cli(RunConfig, [*base, *flags])
                check_settings(config)
            except UserError as error:
                raise UserError(f"{path}: arm {arm}: {error}") from None
            runs.append(StudyRun(arm, seed, out / name, out / "logs" / f"{name}.log", tuple(flags), config))
    baseline = file.baseline or next(iter(file.arms))
    if file.same_data:
        _check_same_data(runs, baseline, path)
    return Study(path.stem, script, out, baseline, list(file.arms), runs, file.sbatch, file.same_data)


def to_words(flags: dict[str, str | list[str]]) -> list[str]:
    """`{lr: 1e-3, compile: false, data-path: [a, b]}` -> `--lr 1e-3 --no-compile --data-path a b`."""
    words = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if value == "true":
            words.append(f"--{flag}")
        elif value == "false":
            words.append(f"--no-{flag}")
        else:
            words += [f"--{flag}", *([value] if isinstance(value, str) else value)]
    return words


class _Words(NoKeyTwice, yaml.BaseLoader):
    """Every value a word, as on a command line (24:00:00 is a time, not the number 86400)."""


def read_words(path: Path) -> dict[str, Any]:
    """A YAML file's keys, every value a word or a list or mapping of words.

    Raises:
        UserError: unreadable, not YAML, no keys at the top, a key twice.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Words)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"{path}: not YAML ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected `key: value` lines; docs/studies.md shows a study file")
    if isinstance(data.get("arms"), dict):  # an arm with nothing after it has no flags of its own
        data["arms"] = {arm: flags or {} for arm, flags in data["arms"].items()}
    return data | {key: {} for key in ("flags", "sbatch") if data.get(key) == ""}


def _read(path: Path) -> dict[str, Any]:
    data = read_words(path)
    missing = [key for key in ("script", "out", "arms") if key not in data]
    if missing:
        raise UserError(f"{path}: no `{missing[0]}:`; a study needs script, out and arms (docs/studies.md)")
    return data


def _check(file: StudyFile, script: Path, path: Path) -> None:
    if not script.is_file():
        raise UserError(f"{path}: script {script}: no such file here; paths count from the folder you start in")
    if not file.out:
        raise UserError(f"{path}: out is empty; name a folder")
    for key, value in (("arms", file.arms), ("seeds", file.seeds)):
        if not value:
            raise UserError(f"{path}: {key}: name at least one")
    if len(set(file.seeds)) < len(file.seeds):
        raise UserError(f"{path}: seeds: {', '.join(map(str, file.seeds))}: one is there twice")
    if file.baseline is not None and file.baseline not in file.arms:
        raise UserError(f"{path}: baseline {file.baseline}: no such arm; arms are {', '.join(file.arms)}")
    for arm in file.arms:
        if not re.fullmatch(r"\w[\w.+-]*", arm, re.ASCII):
            raise UserError(f"{path}: arm {arm!r}: becomes a folder's name; use letters, digits and . _ + -")
    for flags in (file.flags, *file.arms.values()):
        for name in flags:
            if name.replace("_", "-") in _OURS:
                raise UserError(f"{path}: flag {name}: the study gives it itself (out and seeds decide); leave it out")


def _check_same_data(runs: list[StudyRun], baseline: str, path: Path) -> None:
    """Arms of one seed read the same samples in the same order if these agree; the seed does the rest."""
    first = next(run for run in runs if run.arm == baseline)
    for run in runs:
        for name in _ORDER:
            ours, theirs = flat(run.config)[name], flat(first.config)[name]
            if ours != theirs:
                flag = name.replace("_", "-")
                raise UserError(
                    f"{path}: arm {run.arm} has --{flag} {_shown(ours)}, {baseline} has {_shown(theirs)}: they would "
                    "not read the same data in the same order; make them equal, or say `same_data: false`"
                )


def flat(config: RunConfig) -> dict[str, Any]:
    """Field name -> value over all sections (names are unique)."""
    return {name: value for section in vars(config).values() for name, value in vars(section).items()}


def _shown(value: Any) -> str:
    return shlex.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
