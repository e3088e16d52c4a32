"""Several runs of a study at the same time: in real processes, with GPUs, ports and an interruption for each."""

import os
import signal

import pytest

from megasink.errors import UserError
from megasink.study.command import StudyRequest, run_study
from megasink.study.gpus import deal_gpus, visible_gpus
from megasink.study.local import run_in_turn
from megasink.study.study_file import load_study
from tests.helpers.jobs import metrics, write_tokens
from tests.study.files import TINY_FLAGS, write_study
from tests.study.launching import LAUNCHER, start, until

MEETING = """
folder=$(dirname "$0")
while [ $# -gt 0 ]; do case $1 in --save) save=$2 ;; esac; shift; done
name=$(basename "$save")
mkdir "$folder/now/$name"
ls "$folder/now" | wc -l > "$folder/$name.beside"
echo "$MASTER_PORT $CUDA_VISIBLE_DEVICES" > "$folder/$name.began"
for _ in {1..300}; do
  [ "$(ls "$folder"/*_seed${name##*_seed}.began | wc -l)" = 2 ] && break
  sleep 0.1
done
[ "$(ls "$folder"/*_seed${name##*_seed}.began | wc -l)" = 2 ] || exit 3
mkdir -p "$save/checkpoints/step_00000004" && echo '{}' > "$save/checkpoints/step_00000004/manifest.json"
rmdir "$folder/now/$name"
"""
"""A run that only ends well when the other arm of its seed has begun."""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "NUM_GPUS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def test_two_runs_meet_and_share_nothing(tmp_path, monkeypatch, capsys):
    """Both arms of each seed, never more than two runs; GPUs and a port for each although the environment has one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    (tmp_path / "now").mkdir()
    (tmp_path / "meet.sh").write_text(MEETING)
    study = write_study(tmp_path / "s.yaml", script=str(tmp_path / "meet.sh"), seeds=[1, 2])
    assert run_study(StudyRequest(study=str(study), at_once=2)) == 0
    said = capsys.readouterr().out
    assert "5 GPUs, 2 runs at once: 2 each; left idle: GPU 1\n" in said
    began = [said.index(f"{arm}_seed{seed}: from step 0") for seed in (1, 2) for arm in ("baseline", "V-scale")]
    assert began == sorted(began)
    beside = [int(path.read_text()) for path in tmp_path.glob("*.beside")]
    assert max(beside) == 2 and len(beside) == 4
    for seed in (1, 2):
        words = [(tmp_path / f"{arm}_seed{seed}.began").read_text().split() for arm in ("baseline", "V-scale")]
        assert {gpus for _, gpus in words} == {"4,5", "6,7"}
        assert len({port for port, _ in words} | {"29500"}) == 3


def test_interrupted_both_save(tmp_path):
    """The third run never begins."""
    write_tokens(tmp_path / "tokens")
    (tmp_path / "launch.sh").write_text(LAUNCHER)
    flags = TINY_FLAGS | {"data-path": str(tmp_path / "tokens"), "save-interval": "0", "train-iters": "1000000"}
    study = write_study(tmp_path / "s.yaml", script=str(tmp_path / "launch.sh"), flags=flags, seeds=[1, 2])
    runs = [tmp_path / "out" / f"{arm}_seed1" for arm in ("baseline", "V-scale")]
    process = start(study, "--at-once", "2")
    until(process, lambda: all((run / "metrics.jsonl").exists() for run in runs))
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 75, said
    assert "2 stopped, 2 not started" in said
    for run in runs:
        done = metrics(run)[-1]["step"]
        assert (run / "checkpoints" / f"step_{done:08d}" / "manifest.json").is_file()


def test_interrupted_twice_both_are_killed(tmp_path):
    (tmp_path / "launch.sh").write_text('echo $$ > "$0.$$"; mv "$0.$$" "$0.$$.pid"; exec sleep 1000\n')
    study = write_study(tmp_path / "s.yaml", script=str(tmp_path / "launch.sh"))
    process = start(study, "--at-once", "2")
    until(process, lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 75, said
    for path in tmp_path.glob("*.pid"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_after_an_error_of_ours_both_are_asked_to_stop(tmp_path):
    """A page that cannot be drawn, say: without the study nobody would stop them."""
    (tmp_path / "rank.sh").write_text(
        "trap 'touch $1.saved; exit 75' TERM\ntouch $1.began\nwhile :; do sleep 0.1; done\n"
    )
    (tmp_path / "launch.sh").write_text(f"RANK=0 bash {tmp_path}/rank.sh {tmp_path}/$$ &\nwait $!\n")
    study = load_study(write_study(tmp_path / "s.yaml", script=str(tmp_path / "launch.sh")))

    def refresh() -> None:
        if len(list(tmp_path.glob("*.began"))) == 2:
            raise RuntimeError("ours")

    with pytest.raises(RuntimeError) as error:
        run_in_turn(study, [[], []], refresh, print)
    assert len(list(tmp_path.glob("*.saved"))) == 2
    assert str(error.value) == "ours"  # held until here, with all that its frames refer to


@pytest.mark.parametrize(
    ("gpus", "at_once", "dealt"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("0,1,2,3", 4, ["0", "1", "2", "3"]),
        ("0,1,2,3", 8, ["0", "1", "2", "3", "0", "1", "2", "3"]),
        ("0,1,2,3", 3, ["0", "1", "2"]),
        ("GPU-8a, GPU-1f", 2, ["GPU-8a", "GPU-1f"]),
        ("6,2,-1,3", 1, ["6,2"]),
        ("", 2, ["", ""]),
    ],
)
def test_gpus_are_dealt_out(gpus, at_once, dealt, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    assert [",".join(one) for one in deal_gpus(visible_gpus(), at_once)] == dealt


def test_without_a_choice_all_gpus_count(tmp_path, monkeypatch):
    """As torch counts them; here one that has three."""
    (tmp_path / "torch.py").write_text("class cuda:\n    device_count = staticmethod(lambda: 3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert visible_gpus() == ["0", "1", "2"]
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert visible_gpus() == []


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    study = str(write_study(tmp_path / "s.yaml", sbatch={"nodes": "2"}))
    with pytest.raises(UserError, match="--at-once 0: at least one"):
        run_study(StudyRequest(study=study, on="local", at_once=0))
    with pytest.raises(UserError, match="--at-once is for --on local"):
        run_study(StudyRequest(study=study, at_once=2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for name in ("NUM_GPUS", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "2")
        with pytest.raises(UserError, match=name):
            run_study(StudyRequest(study=study, on="local", at_once=2))
    assert not (tmp_path / "out").exists()
