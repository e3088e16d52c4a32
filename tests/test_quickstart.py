"""The quick start itself, at a few steps, in the environment that runs the tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.jobs import metrics

ROOT = Path(__file__).parents[1]


def quickstart(*flags: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", ROOT / "examples" / "quickstart.sh", "--no-setup", *map(str, flags)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def steps_done_before(result: subprocess.CompletedProcess) -> list[str]:
    assert result.returncode == 0, result.stdout + result.stderr
    return [line[1] for line in result.stdout.splitlines() if line.endswith(": done before")]


def test_from_text_to_report_and_on(tmp_path):
    """Nothing, 2 steps, the same again, 3 steps: each time only what is missing is done; never is a step lost."""
    out = tmp_path / "out"
    assert steps_done_before(first := quickstart("--steps", 2, "--out", "out", cwd=tmp_path)) == []
    assert first.stdout.splitlines()[-1].endswith(f"Open {out}/report/report.html")
    report = (out / "report" / "report.html").read_text()
    assert "baseline" in report and "V-scale" in report
    assert [record["step"] for record in metrics(out / "v_scale")] == [2]
    assert not [line for line in first.stderr.splitlines() if "WARNING" in line or "deepspeed" in line]

    assert steps_done_before(quickstart("--steps", 2, "--out", out)) == list("1234567")

    assert steps_done_before(longer := quickstart("--steps", 3, "--out", out)) == list("1234")
    assert longer.stdout.count("resuming after step 2") == 2
    assert [record["step"] for record in metrics(out / "baseline")] == [2, 3]
    assert (out / "report" / "report.html").read_text() != report

    assert steps_done_before(quickstart("--steps", 2, "--out", out)) == list("123456")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--steps", "0"], "--steps 0: give a whole number"),
        (["--steps", "many"], "--steps many: give a whole number"),
        (["--steps"], "--steps needs a value"),
        (["--stepz", "3"], "unknown option --stepz"),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere: cannot write there"),
        (["--out", ROOT], "holds other files"),
    ],
)
def test_bad_flags_end_with_one_line(flags, line):
    result = quickstart(*flags)
    assert result.returncode == 2 and result.stdout == ""
    assert line in result.stderr and len(result.stderr.splitlines()) == 1


def test_help_names_every_option():
    result = quickstart("--help")
    assert result.returncode == 0
    assert all(option in result.stdout for option in ("--steps", "--out", "--no-setup"))
