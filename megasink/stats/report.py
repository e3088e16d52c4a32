"""A sink report: named float64 arrays with a description of themselves, in one npz file without pickle."""

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from megasink.config import ModelConfig
from megasink.errors import UserError

SCHEMA = "megasink.sink_stats/1"


@dataclass(frozen=True)
class SinkReport:
    """Statistics of one batch; docs/sink-stats.md lists the arrays and their shapes."""

    meta: dict
    arrays: dict[str, np.ndarray]

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        step: int,
        level: str,
        length: int,
        starts: list[int],
        ends: list[int],
        arrays: dict[str, Tensor],
    ) -> "SinkReport":
        tokens = int(arrays["position_count"].sum())
        meta = {
            "schema": SCHEMA,
            "step": step,
            "level": level,
            "sequences": tokens // length,
            "tokens": tokens,
            "seq_length": length,
            "num_layers": config.num_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.kv_channels,
            "v_scale": config.v_scale,
        }
        positions = {"position_start": np.array(starts), "position_end": np.array(ends)}
        return cls(meta, positions | {name: array.numpy() for name, array in arrays.items()})

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def save(self, path: str | Path) -> None:
        """Write atomically."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, meta=np.array(json.dumps(self.meta)), **self.arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> "SinkReport":
        """Raises UserError if the file is missing, damaged or not a sink report."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            meta = json.loads(str(arrays.pop("meta")))
        except FileNotFoundError:
            raise UserError(f"{path}: no such sink report") from None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not a readable sink report ({error})") from None
        if meta.get("schema") != SCHEMA:
            raise UserError(f"{path}: schema {meta.get('schema')!r}, this version reads {SCHEMA!r}")
        return cls(meta, arrays)
