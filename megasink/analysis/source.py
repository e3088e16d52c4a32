"""Finds a checkpoint's weights, configuration and untrained counterpart, without reading any pickle."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from megasink.analysis.families import FAMILIES, family_of, load_transformers, read_shape, untrained_transformers
from megasink.analysis.streaming import (
    refuse_not_finite,
    stream_megasink,
    stream_transformers,
    stream_untrained_megasink,
    stream_untrained_transformers,
)
from megasink.analysis.subject import MegasinkSubject, Subject
from megasink.checkpoint.folders import step_folders
from megasink.checkpoint.hugging_face_config import CONFIG_FILE, read_model_config
from megasink.checkpoint.manifest import check_weights
from megasink.checkpoint.weights import INDEX_FILE, SINGLE_FILE, WeightReader, expected_weights, load_weights
from megasink.config import DataConfig, ModelConfig, RunConfig
from megasink.config.cli import load_yaml
from megasink.errors import UserError
from megasink.model.llama import Llama
from megasink.tokenize.tokenizers import SENTENCEPIECE_NAMES

MEGASINK = "megasink"
_OWN_TYPES = ("llama", "megasink_llama")
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Source:
    """One checkpoint folder that was looked at and can be loaded."""

    folder: Path
    run_folder: Path | None
    """The run folder it belongs to, where there is one."""
    config: RunConfig
    step: int | None
    """Training steps behind the weights; None where the folder does not say."""
    family: str = MEGASINK
    """MEGASINK, or the model_type of what transformers runs."""

    @property
    def untrained_folder(self) -> Path | None:
        """The untrained weights of the same run, if they were kept."""
        folder = self.folder.parent / "step_00000000"
        return folder if self.run_folder is not None and _is_complete(folder) else None


def find_source(path: Path) -> Source:
    """The checkpoint at `path`: a checkpoint folder, a run folder (its newest complete checkpoint counts), or a Hugging
    Face folder with a Llama.

    Raises:
        UserError: no such folder, not a checkpoint, a half-written or damaged one, pickles only, an unreadable
            configuration.
    """
    if path.is_file():
        raise UserError(_refuse_file(path))
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run folder or one of its checkpoints/step_* folders")
    if (path / CONFIG_FILE).is_file() and not (path / "config.yaml").is_file():
        _check_weights(path)
        family, config = _read_hugging_face(path)
        has_tokenizer = any((path / name).is_file() for name in ("tokenizer.json", *SENTENCEPIECE_NAMES))
        data = DataConfig(tokenizer=str(path) if has_tokenizer else None)
        return Source(path, None, RunConfig(model=config, data=data), step=None, family=family)
    folder = _newest_checkpoint(path) if (path / "checkpoints").is_dir() else path
    _check_complete(folder)
    config = load_yaml(RunConfig, folder / "config.yaml")
    if config.model.vocab_size is None:
        raise UserError(f"{folder / 'config.yaml'}: vocab_size is not set; copy the config.yaml that the run wrote")
    check_weights(folder)
    run_folder = folder.parent.parent if folder.parent.name == "checkpoints" else None
    return Source(folder, run_folder, config, _step(folder))


def load_subject(source: Source, device: torch.device, stream: bool = False) -> Subject:
    """The model in fp32 on `device`; with `stream` its blocks are read when they run, so only forward passes work.

    Raises:
        UserError: weights that are damaged, missing, of another shape, or not finite.
    """
    config, folder = source.config.model, source.folder
    if source.family != MEGASINK:
        if stream and source.family != "gpt2":
            return stream_transformers(folder, config, device)
        subject = load_transformers(folder, config, device)
        for name, parameter in subject.module.named_parameters():
            refuse_not_finite(parameter, name, str(folder))
        return subject
    if stream:
        _refuse_leftovers(config, folder)
        return stream_megasink(config, folder, device)
    return MegasinkSubject(load_model(config, folder, device))


def load_model(config: ModelConfig, folder: Path, device: torch.device) -> Llama:
    """The whole model in fp32 on `device` with the folder's weights; raises as `load_subject`."""
    model = Llama(config)
    load_weights(model, config, folder)
    _refuse_leftovers(config, folder)
    for name, parameter in model.named_parameters():
        refuse_not_finite(parameter, name, str(folder))
    return model.to(device).requires_grad_(False)


def untrained_subject(
    source: Source, device: torch.device, stream: bool = False, kept: bool = True
) -> tuple[Subject, str]:
    """The null of a checkpoint: the same shape with weights never trained, and in words where they came from.

    `kept`: take the run's own untrained weights where it kept them.
    """
    config = source.config.model
    if source.family != MEGASINK:
        make = stream_untrained_transformers if stream and source.family != "gpt2" else untrained_transformers
        return make(source.folder, config, device), f"the same shape as transformers initialises a {source.family}"
    if kept and source.untrained_folder is not None:
        folder = source.untrained_folder
        check_weights(folder)
        load = stream_megasink if stream else lambda *place: MegasinkSubject(load_model(*place))
        return load(config, folder, device), f"untrained weights in {folder}"
    seed = source.config.training.seed
    words = f"the same shape initialised anew from the run's seed {seed}"
    if stream:
        return stream_untrained_megasink(config, seed, device), words
    return MegasinkSubject(Llama(config, seed=seed).to(device).requires_grad_(False)), words


def _read_hugging_face(folder: Path) -> tuple[str, ModelConfig]:
    """Who runs the model of a Hugging Face folder, and its shape."""
    family = family_of(folder)
    try:
        return MEGASINK, read_model_config(folder)
    except UserError:
        if family == "megasink_llama" or family not in (*_OWN_TYPES, *FAMILIES):
            if family is None or family == "megasink_llama":
                raise
            raise UserError(
                f"{folder / CONFIG_FILE}: model_type {family!r} is not supported; {', '.join(FAMILIES)} are"
            ) from None
    return family, read_shape(folder)


def _refuse_leftovers(config: ModelConfig, folder: Path) -> None:
    """A weight that nothing reads means another architecture: figures of it would be wrong without a word."""
    used = expected_weights(config).keys()
    with WeightReader(folder) as reader:
        left = [name for name in reader.names() if name not in used and not name.endswith("rotary_emb.inv_freq")]
    if left == ["lm_head.weight"] and not config.untie_embeddings_and_output_weights:
        return
    if left:
        raise UserError(f"{folder}: holds {left[0]}, which this Llama does not have; another kind of model")


def _newest_checkpoint(run_folder: Path) -> Path:
    folders = step_folders(run_folder / "checkpoints")[::-1]
    if not folders:
        raise UserError(f"{run_folder}: its checkpoints/ folder is empty; the run saved nothing yet")
    return next((folder for folder in folders if _is_complete(folder)), folders[0])


def _is_complete(folder: Path) -> bool:
    return _has_weights(folder) and all((folder / name).is_file() for name in ("config.yaml", "state.json"))


def _has_weights(folder: Path) -> bool:
    return (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()


def _check_complete(folder: Path) -> None:
    if _is_complete(folder):
        return
    missing = [name for name in ("config.yaml", "state.json") if not (folder / name).is_file()]
    if len(missing) == 2:
        _check_weights(folder)
    if not _has_weights(folder):
        missing.insert(0, SINGLE_FILE)
    raise UserError(f"{folder}: half-written checkpoint, {' and '.join(missing)} missing; give a complete one")


def _check_weights(folder: Path) -> None:
    if _has_weights(folder):
        return
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in _PICKLE_SUFFIXES]
    if pickles:
        raise UserError(
            f"{folder}: holds only pickled weights ({pickles[0]}), which can run code and are never opened; save "
            "safetensors instead"
        )
    raise UserError(f"{folder}: not a checkpoint (no {SINGLE_FILE}); give a run, checkpoint or Hugging Face folder")


def _refuse_file(path: Path) -> str:
    if path.suffix in _PICKLE_SUFFIXES:
        return f"{path}: a pickle, which can run code and is never opened; give a folder with {SINGLE_FILE}"
    return f"{path}: a file; give the folder that holds {SINGLE_FILE} and config.yaml"


def _step(folder: Path) -> int:
    path = folder / "state.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: no readable `step`; the checkpoint is damaged, give another") from None
