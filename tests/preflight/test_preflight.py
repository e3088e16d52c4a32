"""Real ranks over gloo that pretend to be several nodes."""

import json
import subprocess
from pathlib import Path

import pytest

from megasink.errors import UserError
from megasink.preflight.config import PreflightConfig, check_config
from tests.helpers.jobs import ROOT, Job, Outcome

FILE = ROOT / "examples" / "preflight.sbatch"
SMALL = ["--large-mib", 0.25, "--file-mib", 2, "--iterations", 5, "--timeout-in-mins", 1]
# two loaded cores are no cluster
PATIENT = ["--factor", 1e3, "--latency-factor", 1e3, "--disk-factor", 1e3, "--compute-factor", 1e3]
PROGRAM = f"import runpy; runpy.run_path({str(FILE)!r}, run_name='__main__')"
PLANT = """
import os, time
import torch.distributed as dist
if os.environ["RANK"] in ("2", "3"):  # node1's clock is ahead
    own_time = time.time
    time.time = lambda: own_time() + 30.0
if os.environ["RANK"] == "3":  # and its link is slow
    all_reduce = dist.all_reduce
    def slow(*args, **kwargs):
        time.sleep(0.1)
        return all_reduce(*args, **kwargs)
    dist.all_reduce = slow
"""


def start(*flags: object, ranks: int, ranks_per_node: int, plant: str = "") -> Outcome:
    """examples/preflight.sbatch as a launcher starts it, after the code of `plant`."""
    environ = {"MEGASINK_RANKS_PER_NODE": str(ranks_per_node)}
    return Job(*SMALL, *flags, ranks=ranks, program=plant + PROGRAM, environ=environ).wait(120)


def report(run: Path) -> dict:
    return json.loads((run / "preflight" / "report.json").read_text())


def test_three_nodes_of_one_rank_measure_all_pairs(tmp_path):
    outcome = start(*PATIENT, "--save", tmp_path, ranks=3, ranks_per_node=1)
    assert outcome.codes == [0, 0, 0], outcome.output
    found = report(tmp_path)
    assert found["bad"] == {} and [node["name"] for node in found["nodes"]] == ["node0", "node1", "node2"]
    for node in found["nodes"]:
        assert len(node["pairs"]) == 2
        assert all(
            value > 0 for value in [*node["measures"].values(), *node["rank_measures"]["matrix product"].values()]
        )
        assert abs(node["clock_offset_s"]) < 0.5
    assert outcome.lines("megasink: none of 3 stands out")
    assert not list((tmp_path / "preflight").glob(".speed-*"))


def test_a_slow_node_with_a_wrong_clock_is_named_in_one_line(tmp_path):
    limits = ["--latency-factor", 4, "--factor", 1e3, "--disk-factor", 1e3, "--compute-factor", 1e3]
    outcome = start(*limits, "--save", tmp_path, ranks=4, ranks_per_node=2, plant=PLANT)
    assert outcome.codes == [1] * 4, outcome.output
    (line,) = outcome.lines("megasink: BAD")
    assert line.startswith("megasink: BAD node1: within latency") and "clock +30.0" in line
    assert set(report(tmp_path)["bad"]) == {"node1"}
    assert outcome.lines("node1")[0].endswith("BAD")


def test_no_room_to_write_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    outcome = start("--save", tmp_path / "file", ranks=1, ranks_per_node=1)
    assert outcome.codes == [2]
    (line,) = outcome.output.splitlines()
    assert "cannot write in" in line and "--save" in line


def test_a_report_that_cannot_be_written_hides_no_verdict(tmp_path):
    (tmp_path / "preflight" / "report.json").mkdir(parents=True)
    outcome = start(*PATIENT, "--save", tmp_path, ranks=2, ranks_per_node=1)
    assert outcome.codes == [2, 2] and outcome.lines("megasink: none of 2 stands out"), outcome.output
    assert outcome.output.count("report.json: not written (Is a directory)") == 1 and "Traceback" not in outcome.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("factor", 1.0),
        ("iterations", 0),
        ("pair_rounds", 1),
        ("timeout_in_mins", -1.0),
        ("timeout_in_mins", float("nan")),
        ("file_mib", float("inf")),
        ("save", ""),
    ],
)
def test_values_that_cannot_be_meant_are_refused(name, value):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} "):
        check_config(PreflightConfig(**{name: value}))


def test_the_script_parses_as_bash():
    assert subprocess.run(["bash", "-n", FILE]).returncode == 0
