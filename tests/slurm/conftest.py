"""A real Slurm of two nodes on this machine, for the tests that submit jobs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("two_nodes.sh")


class Slurm:
    """Slurm's commands against the private cluster."""

    def __init__(self, conf: Path):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environ = kept | {
            "SLURM_CONF": str(conf),
            "PATH": path,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": str(ROOT),
        }

    def run(self, *command: object) -> str:
        """Output of a Slurm command, which must succeed."""
        result = subprocess.run(list(map(str, command)), env=self.environ, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, by name."""
        fields = (field.partition("=") for field in self.run("scontrol", "show", "job", number).split())
        return {name: value for name, _, value in fields}

    def wait(self, what: str, until: Callable[[], bool], log: Path, seconds: float = 240.0) -> None:
        """Ask again and again until `until()` holds; after `seconds` fail with the job's log."""
        end = time.monotonic() + seconds
        while not until():
            said = log.read_text() if log.exists() else "nothing"
            assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}; the job said:\n{said}"
            time.sleep(0.2)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(["bash", SCRIPT, "start", folder], capture_output=True, text=True)
    if started.returncode == 3:
        pytest.skip(f"no Slurm here: {started.stdout.strip()}")
    assert started.returncode == 0, started.stdout + started.stderr
    cluster = Slurm(folder / "slurm.conf")
    yield cluster
    subprocess.run(["scancel", "--user=root", "--signal=KILL"], env=cluster.environ)
    subprocess.run(["bash", SCRIPT, "stop", folder], check=True)
