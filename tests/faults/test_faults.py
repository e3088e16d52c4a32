"""Real jobs to which something happens: each ends or goes on as docs/fault-tolerance.md says, and nothing is lost."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from megasink.checkpoint.manifest import find_damage
from tests.helpers.jobs import TINY, Job, Outcome, losses, metrics_without_times

STEPS, SAVE_INTERVAL = 10, 3
PROGRAM = "from tests.faults.inject import run; run()"
FLAGS = ["--train-iters", STEPS, "--save-interval", SAVE_INTERVAL, "--tensor-model-parallel-size", 2, "--auto-resume"]


def start(run: Path, tokens: Path, *flags: object, fault: dict | None = None, ranks: int = 2) -> Job:
    environ = {"FAULT": json.dumps(fault or {})}
    words = [*TINY, "--data-path", tokens, "--save", run, *FLAGS, *flags]
    return Job(*words, ranks=ranks, program=PROGRAM, environ=environ)


def job(*arguments, **more) -> Outcome:
    return start(*arguments, **more).wait()


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))


def events(run: Path, kind: str) -> list[dict]:
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def undisturbed(tokens, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    outcome = job(run, tokens)
    assert outcome.codes == [0, 0], outcome.output
    return run


def test_a_run_killed_four_times_and_stopped_once_is_the_undisturbed_run(tokens, tmp_path, undisturbed):
    run, chance = tmp_path / "run", random.Random(20261124)
    faults = [
        {"kind": "kill", "rank": chance.randrange(2), "at": chance.randrange(4, 6)},
        {"kind": "kill_after_file", "rank": chance.randrange(2), "at": chance.randrange(1, 7)},
        {"kind": "kill_before_manifest", "rank": 0, "at": 1},
        {"kind": "kill_before_rename", "rank": 0, "at": 1},
    ]
    for fault in faults:
        outcome = job(run, tokens, fault=fault)
        killed, other = outcome.codes[fault["rank"]], outcome.codes[1 - fault["rank"]]
        assert (killed, other) == (-9, 76), (fault, outcome.output)
        assert outcome.lines(f"megasink: rank {1 - fault['rank']} lost another rank"), outcome.output
    stopped = job(run, tokens, fault={"kind": "terminate", "rank": 1, "at": 7})
    assert stopped.codes == [75, 75], stopped.output
    assert stopped.lines("Stopped after step 9")  # asked before step 8, read one step late
    finished = job(run, tokens)
    assert finished.codes == [0, 0], finished.output
    assert finished.lines("megasink: resuming after step 9")
    assert metrics_without_times(run) == metrics_without_times(undisturbed)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(tokens, tmp_path, undisturbed):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    newest, before = (run / "checkpoints" / f"step_{step:08d}" for step in (10, 9))
    truncated = before / "zero_pp_rank_0_mp_rank_01_optim_states.pt"
    os.truncate(truncated, truncated.stat().st_size - 1)
    flipped = newest / "layer_01-model_01-model_states.pt"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    outcome = job(run, tokens)
    assert outcome.codes == [0, 0], outcome.output
    first, second = outcome.lines("megasink: checkpoint step_")
    assert f"step_00000010 is damaged ({flipped.name} has changed" in first
    assert f"step_00000009 is damaged ({truncated.name} has " in second
    assert outcome.lines("megasink: resuming after step 6")
    assert metrics_without_times(run) == metrics_without_times(undisturbed)


def test_nothing_starts_over_when_every_checkpoint_is_damaged(tokens, tmp_path, undisturbed):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for weights in (run / "checkpoints").glob("step_*/model.safetensors"):
        os.truncate(weights, 100)
    outcome = job(run, tokens)
    assert outcome.codes == [2, 2] and "every checkpoint is damaged" in outcome.output
    assert metrics_without_times(run) == metrics_without_times(undisturbed)


def test_a_step_that_is_not_finite_is_skipped_counted_and_named(tokens, tmp_path, undisturbed):
    run = tmp_path / "run"
    outcome = job(run, tokens, fault={"kind": "nan", "at": 2, "until": 3})
    assert outcome.codes == [0, 0], outcome.output
    (event,) = events(run, "skipped_step")
    assert (event["step"], event["first_sample"], event["last_sample"]) == (3, 8, 11)
    assert outcome.lines("megasink: step 3: loss nan")
    assert losses(run)[:2] == losses(undisturbed)[:2]
    assert losses(run)[2] is None and None not in losses(run)[3:]  # weights and moments stayed finite
    state = json.loads((run / "checkpoints" / "step_00000003" / "state.json").read_text())
    assert (state["skipped_steps"], state["consumed_samples"]) == (1, 12)


@pytest.mark.parametrize(
    ("zero_stage", "where", "found"),
    [
        (0, {}, "the forward pass is finite, the backward pass is not from layer 1"),
        (1, {}, "the forward pass is finite, the backward pass is not from layer 1"),
        (1, {"layer": 1}, "the forward pass is not finite from layer 1 on"),
    ],
)
def test_too_many_such_steps_end_the_run_with_a_checkpoint_and_a_diagnosis(tokens, tmp_path, zero_stage, where, found):
    run = tmp_path / "run"
    flags = ["--max-skipped-steps", 2, "--tensor-model-parallel-size", 1, "--zero-stage", zero_stage]
    outcome = job(run, tokens, *flags, fault={"kind": "nan", "at": 4, "until": STEPS} | where, ranks=1)
    assert outcome.codes == [77], outcome.output
    (diverged,) = events(run, "diverged")
    assert steps_of(run)[-1] == diverged["step"] < STEPS
    assert diverged["diagnosis"].startswith(f"all weights are finite; {found}") and found in outcome.output


def test_a_run_whose_every_step_was_skipped_has_diverged_however_short_it_is(tokens, tmp_path):
    for attempt in ("as it was", "started again"):
        outcome = job(tmp_path, tokens, "--train-iters", 3, fault={"kind": "nan", "at": 0, "until": 3})
        assert outcome.codes == [77, 77], (attempt, outcome.output)
        (line,) = outcome.lines("megasink: 3 steps in a row were not finite; stopped after step 3: ")
        assert "all weights are finite" in line and "Traceback" not in outcome.output
    assert job(tmp_path, tokens, "--train-iters", 4).codes == [0, 0]  # one that was not skipped


def test_a_rank_that_hangs_ends_the_job_and_is_named(tokens, tmp_path):
    outcome = job(tmp_path, tokens, "--step-timeout-in-mins", 0.1, fault={"kind": "sleep", "rank": 1, "at": 2})
    assert outcome.codes == [76, 76], outcome.output
    assert outcome.lines("megasink: no progress for")
    (late,) = outcome.lines("megasink:   rank 1: after step 2, training, in ")
    assert "inject.py" in late
    (hang,) = (tmp_path / "hangs").iterdir()
    assert "inject.py" in (hang / "rank_00001.stacks.txt").read_text()
    assert late in (hang / "summary.txt").read_text()


def test_a_later_signal_ends_a_rank_at_once_even_in_a_collective_that_never_ends(tokens, tmp_path):
    stuck = start(tmp_path, tokens, fault={"kind": "sleep", "rank": 1, "at": 2})
    stuck.until_said("step  1/10")
    while stuck.ranks[0].exitcode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stuck.ranks[0].pid, signal.SIGTERM)
        stuck.ranks[0].join(0.2)
    stuck.ranks[1].kill()
    assert stuck.wait().codes == [128 + signal.SIGTERM, -9]


def test_a_frozen_rank_is_the_one_nothing_is_heard_from(tokens, tmp_path):
    frozen = start(tmp_path, tokens, "--step-timeout-in-mins", 0.1, fault={"kind": "stop", "rank": 1, "at": 2})
    frozen.ranks[0].join(60.0)
    frozen.ranks[1].kill()  # nothing else ends a stopped process
    outcome = frozen.wait()
    assert outcome.codes == [76, -9], outcome.output
    assert outcome.lines("megasink:   rank 1: nothing heard (frozen or dead): suspect this one"), outcome.output
    assert outcome.lines("megasink:   rank 0: after step 2, training, in ")


def test_a_collective_that_times_out_ends_the_job_and_the_silent_rank_is_named(tokens, tmp_path):
    flags = ["--step-timeout-in-mins", 0, "--distributed-timeout-in-mins", 0.1]
    hanging = start(tmp_path, tokens, *flags, fault={"kind": "sleep", "rank": 1, "at": 2})
    hanging.ranks[0].join(60.0)
    hanging.ranks[1].kill()  # as a launcher does
    outcome = hanging.wait()
    assert outcome.codes == [76, -9], outcome.output
    assert outcome.lines("megasink:   rank 1: nothing heard (frozen or dead): suspect this one"), outcome.output
    assert outcome.lines("megasink:   rank 0: after step 2, training, in ")[0].count("watchdog.py") == 0
    (hang,) = (tmp_path / "hangs").iterdir()
    assert "train_batch" in (hang / "rank_00000.stacks.txt").read_text()
    assert json.loads((hang / "rank_00000.collectives.json").read_text())


def test_orphaned_ranks_keep_the_folder_until_they_end_and_write_into_no_other_job(tokens, tmp_path, undisturbed):
    """A lost node's ranks live on for a while: one holds the lock, the other is in the middle of a save.

    gloo may not tell a process that was frozen of a connection that closed meanwhile: then the watchdog ends it.
    """
    run = tmp_path / "run"
    orphans = start(run, tokens, "--step-timeout-in-mins", 0.1, fault={"kind": "stop_after_file", "rank": 1, "at": 1})
    orphans.until(lambda: is_stopped(orphans.ranks[1].pid))
    os.kill(orphans.ranks[0].pid, signal.SIGSTOP)
    following = start(run, tokens)
    following.until_said(f"megasink: waiting for another job to leave {run}")
    os.kill(orphans.ranks[0].pid, signal.SIGKILL)
    finished = following.wait()
    assert finished.codes == [0, 0], finished.output
    os.kill(orphans.ranks[1].pid, signal.SIGCONT)
    assert orphans.wait().codes == [-9, 76]
    assert metrics_without_times(run) == metrics_without_times(undisturbed)
    assert all(find_damage(run / "checkpoints" / f"step_{step:08d}") is None for step in steps_of(run))
    assert steps_of(run) == steps_of(undisturbed)


def is_stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@pytest.mark.parametrize(
    ("kind", "at", "saving", "says"),
    [("fill", 5, "--no-async-save", "needs "), ("fill_while_writing", 3, "--async-save", "rank 0: ")],
)
def test_a_full_disk_leaves_old_checkpoints_and_lets_the_run_go_on(tokens, tmp_path, kind, at, saving, says):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    run = tmp_path / "run"
    flags = ["--tensor-model-parallel-size", 1, "--save-interval", 2, "--train-iters", 8, saving]
    try:
        fault = {"kind": kind, "rank": 0, "at": at, "path": str(tmp_path)}
        full = job(run, tokens, *flags, fault=fault, ranks=1)
        assert full.codes == [2], full.output
        assert full.lines(f"megasink: checkpoint not saved ({says}") and full.lines("step 8/8"), full.output
        assert steps_of(run) == [0, 2, 4] and not list((run / "checkpoints").glob(".*"))
        (tmp_path / "filler").unlink()
        roomy = job(run, tokens, *flags, ranks=1)
        assert roomy.codes == [0] and roomy.lines("megasink: resuming after step 4"), roomy.output
        assert steps_of(run) == [0, 2, 4, 6, 8] and len(losses(run)) == 8
    finally:
        subprocess.run(["umount", tmp_path], check=True)
