"""A display is never needed; runs that several modules analyse."""

import shutil
from pathlib import Path

import matplotlib
import pytest

from tests.analysis.runs import write_run, write_shards
from tests.helpers.tiny import tiny_config

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Shards, a baseline with its untrained weights, and a V-scale run without."""
    folder = tmp_path_factory.mktemp("runs")
    shards = write_shards(folder / "text", 91)
    write_run(folder / "base", tiny_config(), (shards,))
    write_run(folder / "vscale", tiny_config(v_scale="on"), (shards,), keep_untrained=False)
    return folder


@pytest.fixture
def copied(made, tmp_path) -> Path:
    """The baseline's run folder, free to be damaged."""
    return Path(shutil.copytree(made / "base", tmp_path / "base"))
