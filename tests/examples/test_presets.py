"""Every preset is a run that can start at its size, as a shell file and as Python."""

import subprocess
import sys
from pathlib import Path

import pytest

from megasink.config import RunConfig
from megasink.config.checks import check_run
from megasink.config.cli import load_yaml
from megasink.plan.plan import Machine, make_plan

EXAMPLES = Path(__file__).parents[2] / "examples"
BILLIONS = {"0.1b": 0.10, "0.3b": 0.27, "1b": 1.2, "7b": 6.7, "70b": 69.0}
NODES = {"0.1b": 1, "0.3b": 1, "1b": 2, "7b": 8, "70b": 64}
GPUS_PER_NODE = 8
VOCABULARY = {"0.1b": 48000}  # the paper's; otherwise 32,000

every_preset = pytest.mark.parametrize("size", BILLIONS)


@every_preset
def test_its_yaml_is_a_valid_run_of_the_size_in_its_name(size):
    config = load_yaml(RunConfig, EXAMPLES / f"pretrain_{size}.yaml")
    check_run(config, world_size=NODES[size] * GPUS_PER_NODE)
    model = config.model
    width, head = model.hidden_size, model.kv_channels
    attention = 2 * width * head * (model.num_attention_heads + model.num_key_value_heads)
    vocabulary = VOCABULARY.get(size, 32000)
    parameters = model.num_layers * (attention + 3 * width * model.ffn_hidden_size) + 2 * vocabulary * width
    assert parameters == pytest.approx(BILLIONS[size] * 1e9, rel=0.04)


@every_preset
def test_its_form_for_smaller_gpus_is_the_same_training(size):
    """What differs on another GPU is the layout and the micro-batch, never the model, the batch or the schedule."""
    paths = EXAMPLES / f"pretrain_{size}.yaml", EXAMPLES / "a100-40gb" / f"pretrain_{size}.yaml"
    plain, smaller = load_yaml(RunConfig, paths[0]), load_yaml(RunConfig, *paths)
    check_run(smaller, world_size=NODES[size] * GPUS_PER_NODE)
    assert smaller != plain
    smaller.parallel, smaller.training.micro_batch_size = plain.parallel, plain.training.micro_batch_size
    assert smaller == plain


@every_preset
@pytest.mark.parametrize(("gpu", "more"), [("h100", []), ("a100-40gb", ["a100-40gb"])])
def test_the_planner_says_that_it_fits(size, gpu, more):
    files = [EXAMPLES.joinpath(*folder, f"pretrain_{size}.yaml") for folder in [[], more]]
    config = load_yaml(RunConfig, *files)
    config.model.vocab_size = VOCABULARY.get(size, 32000)
    assert make_plan(config, Machine.of(NODES[size], GPUS_PER_NODE, gpu)).fits


@every_preset
def test_slurm_starts_as_many_ranks_as_the_layout_was_made_for(size):
    lines = (EXAMPLES / f"pretrain_{size}.sh").read_text().splitlines()
    assert f"#SBATCH --nodes={NODES[size]}" in lines and f"#SBATCH --ntasks-per-node={GPUS_PER_NODE}" in lines
    assert len(lines) < 40


@every_preset
def test_its_dry_run_finds_nothing_wrong_at_its_true_size(size, tmp_path):
    """On the meta device, on a machine without data and without GPUs."""
    world_size = str(NODES[size] * GPUS_PER_NODE)
    flags = [
        "--dry-run",
        "--world-size",
        world_size,
        "--data-path",
        str(tmp_path / "none"),
        "--save",
        str(tmp_path / "run"),
    ]
    command = [sys.executable, EXAMPLES / f"pretrain_{size}.sh", *flags]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert f"dry run of {world_size} ranks" in shown.stdout and "found nothing wrong" in shown.stdout
    assert not (tmp_path / "run").exists()


def test_the_shell_files_are_clean():
    files = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".sh", ".sbatch"))
    assert len(files) >= 7
    for file in files:
        subprocess.run(["bash", "-n", file], check=True)
    found = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "--external-sources", "--exclude=SC1091", *files],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
