"""What DeepSpeed would write into a checkpoint, caught in host memory, so that training need not wait for the disk."""

from pathlib import Path
from typing import Any

import deepspeed
from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from megasink.checkpoint.host_copy import finish_host_copies, to_host


def engine_files(engine: deepspeed.DeepSpeedEngine, directory: Path) -> dict[str, Any]:
    """File name -> what belongs in it (copied to the host), for this rank's part of DeepSpeed's checkpoint.

    Every rank must call this. The copies have arrived when it returns; training may go on and change the originals.
    """
    catcher, original = _Catcher(), engine.checkpoint_engine
    engine.checkpoint_engine = catcher
    engine._copy_recovery_script = lambda _: None  # it would put a script of DeepSpeed's into the folder
    try:
        engine.save_checkpoint(str(directory.parent), tag=directory.name, save_latest=False)
    finally:
        engine.checkpoint_engine = original
        del engine._copy_recovery_script
    finish_host_copies()
    return catcher.files


class _Catcher(CheckpointEngine):
    """Stands where DeepSpeed's writer stands during a save."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, Any] = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def save(self, state_dict: Any, path: str) -> None:
        self.files[Path(path).name] = to_host(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        raise NotImplementedError("writes only")

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True

    def preserves_storage_sharing(self) -> bool:
        return False  # every tensor is copied by itself
