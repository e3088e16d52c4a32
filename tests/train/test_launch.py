"""Every launcher's variables become the same five."""

import pytest

from megasink.errors import UserError, run_cli
from megasink.train.launch import init_environment


def test_a_launcher_that_set_the_variables_is_left_alone():
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    environ = dict(given)
    init_environment([], environ)
    assert environ == given


@pytest.mark.parametrize("flag", [["--local_rank", "2"], ["--local_rank=2"], ["--local-rank=2"]])
def test_local_rank_of_the_deepspeed_launcher_is_taken_off_the_command_line(flag):
    environ = {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert init_environment(["--lr", "1", *flag, "--seed", "2"], environ) == ["--lr", "1", "--seed", "2"]
    assert environ["LOCAL_RANK"] == "2"


def test_a_process_started_by_hand_is_a_job_of_one():
    environ = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}  # the shell of a batch script
    init_environment([], environ)
    assert (environ["RANK"], environ["WORLD_SIZE"], environ["LOCAL_RANK"]) == ("0", "1", "0")
    assert environ["MASTER_PORT"] == "0"  # any that is free: nobody else has to find it


def slurm_task(**more):
    return {
        "SLURM_JOB_ID": "70000",
        "SLURM_STEP_ID": "1",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        **more,
    }


def test_an_srun_task_takes_its_place_from_its_step(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    environ = slurm_task()
    init_environment([], environ)
    assert (environ["RANK"], environ["WORLD_SIZE"], environ["LOCAL_RANK"]) == ("3", "4", "1")
    assert environ["MASTER_ADDR"] == "node1"
    other = slurm_task(SLURM_STEP_ID="2")
    init_environment([], other)
    assert 1024 < int(environ["MASTER_PORT"]) < 32768 and environ["MASTER_PORT"] != other["MASTER_PORT"]


def test_a_task_that_sees_one_gpu_uses_its_device_0():
    environ = slurm_task(MASTER_ADDR="here", CUDA_VISIBLE_DEVICES="1")
    init_environment([], environ)
    assert environ["LOCAL_RANK"] == "0"
    environ = slurm_task(MASTER_ADDR="here", CUDA_VISIBLE_DEVICES="0,1")
    init_environment([], environ)
    assert environ["LOCAL_RANK"] == "1"


def test_an_unresolvable_node_list_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        init_environment([], slurm_task())


FIVE = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        (FIVE | {"RANK": ""}, "RANK is ''"),
        (FIVE | {"RANK": "-1"}, "RANK is '-1'"),
        (FIVE | {"WORLD_SIZE": ""}, "WORLD_SIZE is not"),
        (FIVE | {"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
        (FIVE | {"MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
        (FIVE | {"MASTER_PORT": "65536"}, "highest port"),
        (FIVE | {"RANK": "2"}, "RANK 2 with WORLD_SIZE 2"),
        ({"SLURM_STEP_NUM_TASKS": "1"}, "SLURM_JOB_ID is not"),
    ],
)
def test_half_an_environment_is_refused(environ, message):
    with pytest.raises(UserError, match=message):
        init_environment([], dict(environ))


def test_a_rank_that_is_no_number_does_not_keep_a_mistake_from_being_said(monkeypatch, capsys):
    def mistake():
        raise UserError("what is wrong")

    monkeypatch.setenv("RANK", "")
    with pytest.raises(SystemExit):
        run_cli(mistake)
    assert capsys.readouterr().err == "megasink: what is wrong\n"
