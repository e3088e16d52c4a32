"""The paper's comparison in one command: text to tokens, arms, an analysis of every saved step, a verdict.

python examples/reproduce/reproduce.py examples/reproduce/cpu.yaml --text FOLDER --out runs/reproduce
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also where megasink is not installed

import tyro
import yaml
from backcopy import Backcopy, write_backcopy
from prepare import ROOT, TextChoice, prepare
from pydantic import ConfigDict
from verdict import read_figures, verdict_text

from megasink.config.cli import from_dict, parse_cli
from megasink.errors import UserError, run_cli
from megasink.study.command import StudyRequest, check_at_once, run_study
from megasink.study.comparison import FIGURES, StudySeries
from megasink.study.run_folder_reader import read_progress
from megasink.study.study_file import Study, StudyRun, load_study, read_words

_SMALL_FILES = ("metrics.jsonl", "events.jsonl", "config.yaml", "provenance.json", "sink_stats/scalars.jsonl")


@dataclass
class Recipe:
    """The keys of a recipe's YAML; `arms` and `flags` as in a study file (docs/studies.md)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    arms: dict[str, dict[str, str | list[str]]]
    flags: dict[str, str | list[str]]
    seeds: list[int]
    vocab_size: int
    """Of the tokenizer that is trained on the text, or of the task."""
    backcopy: Backcopy | None = None
    """Sequences of this task in place of text."""
    tokenizer_mib: float = 32
    """Text the tokenizer is trained on."""
    valid_share: float = 0.01
    """Of the documents, held out."""
    same_data: bool = True
    script: str = "examples/pretrain_0.1b.sh"
    analysis: dict[str, str] = field(default_factory=dict)
    """Flags of tools/analyze_ckpt.py. Without any nothing is analysed: a search."""
    last_analysis: dict[str, str] = field(default_factory=dict)
    """Those of the last step, beside them."""


@dataclass
class ReproduceRequest:
    """Everything from text to verdict; killed or interrupted, the same command goes on."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE.yaml")]
    """recipe.yaml (GPUs), cpu.yaml, backcopy.yaml (no text needed), or search.yaml and
    backcopy_search.yaml (baselines only), all in examples/reproduce."""
    text: tuple[str, ...] = ()
    """Folders and files of text."""
    glob: tuple[str, ...] = ()
    """Names of files to take from folders, for example '*.py'; default: .jsonl, .txt, .md, .parquet and the like."""
    hf_dataset: str | None = None
    """Instead of --text: a dataset of a Hugging Face hub, for example allenai/c4."""
    hf_config: str | None = None
    """Configuration of --hf-dataset, for example en."""
    hf_mib: float = 2000
    """MiB of text to take from --hf-dataset."""
    tokenizer: str | None = None
    """A SentencePiece model to use instead of training one."""
    out: str = "runs/reproduce"
    """Folder for tokens, runs, reports and results."""
    seeds: tuple[int, ...] = ()
    """Seeds to run; default: the recipe's."""
    arms: tuple[str, ...] = ()
    """Arms of the recipe to run; default: all."""
    at_once: int = 1
    """Run this many at the same time (docs/studies.md)."""


def reproduce(request: ReproduceRequest) -> int:
    """Returns the exit code: the study's, or 0."""
    check_at_once(request.at_once)
    recipe = from_dict(Recipe, read_words(Path(request.recipe)), request.recipe)
    unknown = set(request.arms) - set(recipe.arms)
    if unknown:
        raise UserError(f"--arms {' '.join(sorted(unknown))}: the recipe has {', '.join(recipe.arms)}")
    if len(set(request.seeds)) < len(request.seeds):
        raise UserError(f"--seeds {' '.join(map(str, request.seeds))}: one is there twice")
    if not request.out:
        raise UserError("--out is empty; name a folder")
    out = Path(request.out).absolute()
    try:
        (out / "data").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror}); name another folder") from None
    manifest = make_tokens(recipe, request, out / "data")
    os.chdir(ROOT)  # where the launch scripts are
    path = write_study(recipe, request, out)
    study = load_study(path)
    say_epochs(study, manifest)
    code = run_study(StudyRequest(study=str(path), on="local", at_once=request.at_once))
    collect(study, path, out / "results")
    if recipe.analysis and code == 0:
        analyse(study, recipe, out)
    elif recipe.analysis:
        print("not analysed: an arm has not finished (its state stands above)")
    else:
        print(gate_table(study))
    print(f"small files to keep: {out / 'results'}")
    return code


def make_tokens(recipe: Recipe, request: ReproduceRequest, folder: Path) -> dict:
    """`folder`/tokens_train.* and tokens_valid.*; the training part's manifest."""
    if recipe.backcopy is not None:
        if request.text or request.hf_dataset:
            raise UserError(f"{request.recipe} makes its own tokens (backcopy); leave --text and --hf-dataset out")
        return write_backcopy(folder, recipe.backcopy, recipe.vocab_size, _only_seq_length(recipe))
    choice = TextChoice(
        text=tuple(map(os.path.abspath, request.text)),
        glob=request.glob,
        hf_dataset=request.hf_dataset,
        hf_config=request.hf_config,
        hf_mib=request.hf_mib,
        tokenizer=request.tokenizer and os.path.abspath(request.tokenizer),
        vocab_size=recipe.vocab_size,
        tokenizer_mib=recipe.tokenizer_mib,
        valid_share=recipe.valid_share,
    )
    return prepare(folder, choice)


def _only_seq_length(recipe: Recipe) -> int:
    """That of all arms: read at another length, sequences would not begin with BOS."""
    lengths = {str(flags.get("seq-length", recipe.flags.get("seq-length"))) for flags in recipe.arms.values()}
    if len(lengths) > 1 or not next(iter(lengths)).isdigit():
        raise UserError("backcopy: sequences are made for one --seq-length; give all arms the same, under flags")
    return int(lengths.pop())


def write_study(recipe: Recipe, request: ReproduceRequest, out: Path) -> Path:
    """The study file of this recipe and folder."""
    data = {name: str(out / "data" / part) for name, part in _DATA.items()}
    if recipe.backcopy is not None:
        data.pop("tokenizer")  # it has none
    study = {
        "script": recipe.script,
        "out": str(out / "study"),
        "seeds": list(request.seeds) or recipe.seeds,
        "same_data": str(recipe.same_data).lower(),
        "flags": data | recipe.flags,
        "arms": {arm: flags for arm, flags in recipe.arms.items() if not request.arms or arm in request.arms},
    }
    path = out / f"reproduce_{Path(request.recipe).stem}.yaml"  # its name is the page's title
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


_DATA = {"data-path": "tokens_train", "valid-data-path": "tokens_valid", "tokenizer": "tokenizer.model"}


def say_epochs(study: Study, manifest: dict) -> None:
    """How often the recipe reads the text: too few unique tokens, and no sinks form."""
    config = study.runs[0].config
    read = config.training.train_iters * config.training.global_batch_size * config.model.seq_length
    unique = manifest["tokens"]
    print(f"{unique / 1e6:.1f} M unique tokens; {read / 1e6:.1f} M are read: {read / unique:.2f} epochs", flush=True)


def analyse(study: Study, recipe: Recipe, out: Path) -> None:
    """For each seed the last common step's report, one more for each further arm, the verdict; then earlier ones."""
    for seed in dict.fromkeys(run.seed for run in study.runs):
        runs = [run for run in study.runs if run.seed == seed]
        baseline, *others = runs = sorted(runs, key=lambda run: run.arm != study.baseline)
        place = out / "reports" / f"seed_{seed}" / "+".join(run.arm for run in runs)
        *earlier, last = _common_steps(runs)
        pair = {"compare": f"{baseline.arm}:{others[0].arm}"} if others else {}
        _analyse(runs, last, recipe.analysis | recipe.last_analysis | pair, out, place / last)
        for other in others[1:]:
            flags = recipe.analysis | {"compare": f"{baseline.arm}:{other.arm}", "figures": "6,7"}
            _analyse([baseline, other], last, flags, out, place / f"{last}_{other.arm}")
        text = verdict_text(read_figures(place / last))
        (out / "results" / f"verdict_seed_{seed}.md").write_text(text, encoding="utf-8")
        print(f"\nseed {seed}, {last}\n\n{text}", flush=True)
        kept = out / "results" / f"report_seed_{seed}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(place / last, kept, ignore=shutil.ignore_patterns("*.svg", "by_sequence.npz"))
        for step in earlier:
            _analyse(runs, step, recipe.analysis | pair, out, place / step)


def _common_steps(runs: list[StudyRun]) -> list[str]:
    """Those that every run has saved, by name: one that was interrupted saved the step it was at too."""
    saved = [{path.name for path in (run.folder / "checkpoints").glob("step_*")} for run in runs]
    common = set.intersection(*saved) - {"step_00000000"}  # the null is measured beside each
    if not common:
        arms = " and ".join(run.arm for run in runs)
        raise UserError(f"seed {runs[0].seed}: {arms} have saved no step in common; give all arms one --save-interval")
    return sorted(common)


def _analyse(runs: list[StudyRun], step: str, flags: dict[str, str], out: Path, report: Path) -> None:
    if (report / "report.html").is_file():  # written last
        return
    command = [sys.executable, "tools/analyze_ckpt.py", *(str(run.folder / "checkpoints" / step) for run in runs)]
    command += [
        "--label",
        *(run.arm for run in runs),
        "--data",
        str(out / "data" / "tokens_valid"),
        "--out",
        str(report),
    ]
    for name, value in flags.items():
        command += [f"--{name}"] if value == "true" else [f"--{name}", value]
    variables = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    if subprocess.run(command, env=variables).returncode:
        raise UserError("the analysis stopped; its reason stands above; the same command goes on")


def collect(study: Study, file: Path, results: Path) -> None:
    """Copy what is small: the study's file and page, each run's logs of numbers."""
    results.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, results)
    shutil.copy(study.page, results)
    for run in study.runs:
        for name in _SMALL_FILES:
            if (run.folder / name).is_file():
                target = results / run.name / Path(name).name
                target.parent.mkdir(exist_ok=True)
                shutil.copy(run.folder / name, target)


def gate_table(study: Study) -> str:
    """Each variant's last live figures, the strongest sinks first: which one passes the gate?"""
    series = StudySeries(study)
    lines = [" | ".join(["variant", "state", *(figure.title for figure in FIGURES)])]
    rows = []
    for run in study.runs:
        values = [figure.series(series.runs[run.arm][run.seed]) for figure in FIGURES]
        shown = [figure.shown(list(v.values())[-1]) if v else "-" for figure, v in zip(FIGURES, values, strict=True)]
        sinks = list(values[1].values())[-1] if values[1] else 0.0
        rows.append((sinks, " | ".join([run.name, read_progress(run).state, *shown])))
    return "\n".join(lines + [row for _, row in sorted(rows, reverse=True)])


if __name__ == "__main__":
    run_cli(lambda: sys.exit(reproduce(parse_cli(ReproduceRequest, sys.argv[1:], description=__doc__))))
