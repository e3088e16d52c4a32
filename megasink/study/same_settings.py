"""A study that goes on must go on with the settings its runs were made with."""

from megasink.config import RunConfig
from megasink.config.cli import load_yaml
from megasink.errors import UserError
from megasink.study.study_file import Study, flat

_MAY_CHANGE = {"train_iters", "vocab_size", "micro_batch_size", "compile", "tokenizer"}
_TRAINING = {"global_batch_size", "precision", "fp8", "seed"}


def check_same_settings(study: Study) -> None:
    """Compare each run folder's config.yaml with the study file: model, optimizer, data, batch and precision.

    Raises:
        UserError: a run was begun with another value.
    """
    for run in study.runs:
        stored = run.folder / "config.yaml"
        if not stored.is_file():
            continue
        begun, wanted = load_yaml(RunConfig, stored), run.config
        names = {name for section in ("model", "optimizer", "data") for name in vars(getattr(wanted, section))}
        for name in sorted((names | _TRAINING) - _MAY_CHANGE):
            before, now = flat(begun)[name], flat(wanted)[name]
            if before != now:
                raise UserError(
                    f"{run.folder} was begun with {name} {before}, the study now says {now}; give the study another "
                    "`out:` folder, or put the old value back"
                )
