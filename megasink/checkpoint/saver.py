"""Saves a run's checkpoints while it trains: copied at once, written by a thread, made visible when all ranks are done.

`checkpoints/step_00000100/` appears whole or not at all: files go to `.tmp-step_00000100-.../`, the manifest is written
last, then the folder gets its name. If that fails (a full disk, say), older checkpoints stay and training goes on.
"""

import functools
import json
import shutil
import time
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from megasink.checkpoint.host_copy import num_bytes
from megasink.checkpoint.manifest import Entries, describe_file, sync_folder, write_manifest
from megasink.checkpoint.retention import remove_outdated
from megasink.checkpoint.run_checkpoint import STATE_FILE, checkpoint_path, describe_layout, rng_file
from megasink.checkpoint.snapshot import engine_files
from megasink.checkpoint.universal import universal_info
from megasink.checkpoint.weights import gather_weights, save_index, weights_file
from megasink.config import RunConfig
from megasink.config.cli import to_yaml
from megasink.errors import UserError
from megasink.parallel.layout import ParallelLayout

SPARE_BYTES = 16 << 20
"""Left free beside a checkpoint's tensors: for file headers, metrics, reports."""


@dataclass
class _Pending:
    """A checkpoint whose files are being written."""

    step: int
    temporary: Path
    written: "Future[Entries]"


class CheckpointSaver:
    """One per rank; every rank calls every method, in the same order.

    Args:
        say: takes one line for the user; called on rank 0 only.
    """

    def __init__(self, checkpoints: Path, config: RunConfig, layout: ParallelLayout, say: Callable[[str], None]):
        self.checkpoints = checkpoints
        self.config = config
        self.layout = layout
        self.say = say
        self.first = dist.get_rank() == 0
        self.started = 0
        """Saves begun."""
        self.last_failed = False
        self.stall_s = 0.0
        """How long the last `save` kept training waiting."""
        token = [uuid.uuid4().hex[:8]]
        dist.broadcast_object_list(token, src=0)
        self._suffix = token[0]  # an orphaned rank of an earlier job must not write into our folders
        self._pending: _Pending | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        torch.serialization.set_crc32_options(False)  # the manifest has digests; a CRC would hold up training

    @property
    def finished(self) -> int:
        """Saves whose files this rank has written, or failed to."""
        return self.started if self._pending is None or self._pending.written.done() else self.started - 1

    def save(self, state: dict, model: nn.Module, engine: deepspeed.DeepSpeedEngine | None) -> None:
        """Begin the checkpoint of state["step"]; with --no-async-save also end it.

        Without an engine it holds weights only (the untrained ones of step 0): it can be analysed, not resumed.
        """
        began = time.monotonic()
        self.wait()
        temporary = self.checkpoints / f".tmp-step_{state['step']:08d}-{self._suffix}"
        if self._told(lambda: _make_empty(temporary)):
            contents = self._contents(state, model, engine, temporary)
            needed = torch.tensor([num_bytes(contents)], dtype=torch.int64, device=_device())
            dist.all_reduce(needed)
            if self._told(lambda: self._check_space(needed.item())):
                self.started += 1
                written = self._thread.submit(_write, temporary, contents)
                self._pending = _Pending(state["step"], temporary, written)
            elif self.first:
                shutil.rmtree(temporary, ignore_errors=True)
        if not self.config.checkpoint.async_save:
            self.wait()
        self.stall_s = time.monotonic() - began

    def settle(self, finished_everywhere: int) -> None:
        """Make a checkpoint visible once all ranks have written it: `finished_everywhere` is the least `finished`."""
        if self._pending is not None and finished_everywhere >= self.started:
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint under way is visible, or has failed."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        entries, error = {}, None
        try:
            entries = pending.written.result()
        except Exception as caught:  # torch, safetensors and the system each have their own
            error = _reason(caught)
        parts: list[tuple[Entries, str | None]] = [({}, None)] * dist.get_world_size()
        dist.all_gather_object(parts, (entries, error))
        self._told(lambda: self._make_visible(pending, parts))

    def close(self) -> None:
        """Wait, and end the thread."""
        self.wait()
        self._thread.shutdown()

    def _contents(
        self, state: dict, model: nn.Module, engine: deepspeed.DeepSpeedEngine | None, temporary: Path
    ) -> dict[str, Any]:
        """This rank's file names and what belongs in them."""
        layout, rank = self.layout, dist.get_rank()
        contents: dict[str, Any] = {}
        if engine is not None:
            model.universal_checkpoint_info = universal_info(self.config.model, layout)
            contents = engine_files(engine, temporary)
            contents[rng_file(rank)] = _rng_state()
        weights = gather_weights(model, self.config.model, layout)
        if weights and layout.replica.rank == 0:
            contents[weights_file(layout.pipeline.rank, layout.pipeline.size)] = weights
        if self.first:
            described = state | {"resumable": engine is not None, "layout": describe_layout(self.config, layout)}
            contents[STATE_FILE] = json.dumps(described, indent=1)
            contents["config.yaml"] = to_yaml(self.config)
        return contents

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.checkpoints).free
        if free < needed + SPARE_BYTES:
            raise OSError(
                f"needs {_readable(needed + SPARE_BYTES)}, {self.checkpoints} has {_readable(free)} free; make room"
            )

    def _make_visible(self, pending: _Pending, parts: list[tuple[Entries, str | None]]) -> None:
        """On rank 0, when all ranks have written: index and manifest, then the name, then outdated ones go."""
        try:
            errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(parts) if error is not None]
            if errors:
                raise OSError(errors[0])
            entries = functools.reduce(dict.__or__, (entries for entries, _ in parts))
            index = save_index(pending.temporary, self.layout.pipeline.size)
            if index is not None:
                entries[index.name] = describe_file(index)
            write_manifest(pending.temporary, entries)
            final = checkpoint_path(self.checkpoints, pending.step)
            shutil.rmtree(final, ignore_errors=True)  # only ever step 0's weights, or a damaged one
            pending.temporary.rename(final)
            sync_folder(self.checkpoints)
        except Exception:
            shutil.rmtree(pending.temporary, ignore_errors=True)
            raise
        checkpoint = self.config.checkpoint
        outdated = remove_outdated(self.checkpoints, checkpoint.keep_last, checkpoint.keep_every)
        if outdated:
            self._thread.submit(lambda: [shutil.rmtree(folder, ignore_errors=True) for folder in outdated])

    def _told(self, action: Callable[[], None]) -> bool:
        """Run a step of saving on rank 0; whether it worked is known to all ranks, and if not, said in one line."""
        outcome: list[str | None] = [None]
        if self.first:
            try:
                action()
            except Exception as caught:  # whatever it is, the others wait for the outcome
                outcome = [_reason(caught)]
                self.say(f"megasink: checkpoint not saved ({outcome[0]}); older ones are kept, the run goes on")
        dist.broadcast_object_list(outcome, src=0)
        self.last_failed = outcome[0] is not None
        return not self.last_failed


def save_checkpoint(
    checkpoints: Path,
    state: dict,
    model: nn.Module,
    config: RunConfig,
    layout: ParallelLayout,
    engine: deepspeed.DeepSpeedEngine | None,
) -> Path:
    """Write `checkpoints/step_N`, N = state["step"], and wait for it; every rank must call this.

    Raises:
        UserError: it could not be written.
    """
    saver = CheckpointSaver(checkpoints, config, layout, print)
    saver.save(state, model, engine)
    saver.close()
    if saver.last_failed:
        raise UserError(f"{checkpoints}: the checkpoint of step {state['step']} could not be written")
    return checkpoint_path(checkpoints, state["step"])


def _write(directory: Path, contents: dict[str, Any]) -> Entries:
    """In the thread: every file of this rank, on the disk with its digest when this returns."""
    entries: Entries = {}
    try:
        while contents:
            name, content = contents.popitem()  # so that memory is freed as we go
            path = directory / name
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            elif path.suffix == ".safetensors":
                save_file(content, path, metadata={"format": "pt"})
            else:
                torch.save(content, path)
            path.chmod(0o644)  # safetensors lets nobody else read
            entries[name] = describe_file(path)
    except BaseException as error:  # its traceback stays for long, and must not keep the copy with it
        contents.clear()
        content = None
        traceback.clear_frames(error.__traceback__)
        raise
    return entries


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _readable(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
