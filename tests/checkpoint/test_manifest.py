"""A checkpoint is whole, or what is wrong with it is named; outdated ones go and the others stay."""

import os
import shutil
import weakref

import pytest
import torch

from megasink.checkpoint.manifest import MANIFEST_FILE, check_weights, describe_file, find_damage, write_manifest
from megasink.checkpoint.retention import remove_outdated
from megasink.checkpoint.run_checkpoint import checkpoint_path, complete_checkpoints
from megasink.checkpoint.saver import _write as write_files
from megasink.errors import UserError


@pytest.fixture
def checkpoint(tmp_path):
    folder = checkpoint_path(tmp_path, 7)
    folder.mkdir()
    for name in ("a.pt", "b.safetensors", "state.json"):
        (folder / name).write_bytes(os.urandom(1000))
    write_manifest(folder, {path.name: describe_file(path) for path in folder.iterdir()})
    return folder


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[500] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda folder: (folder / MANIFEST_FILE).unlink(), "no readable manifest"),
        (lambda folder: os.truncate(folder / MANIFEST_FILE, 50), "no readable manifest"),
        (lambda folder: (folder / "a.pt").unlink(), "a.pt is missing"),
        (lambda folder: os.truncate(folder / "a.pt", 999), "a.pt has 999 bytes instead of 1000"),
        (lambda folder: flip_a_bit(folder / "b.safetensors"), "b.safetensors has changed"),
        (lambda folder: (folder / "stranger.pt").write_bytes(b"x"), "stranger.pt is not in the manifest"),
    ],
)
def test_damage_is_found_and_named(checkpoint, harm, named):
    assert find_damage(checkpoint) is None
    harm(checkpoint)
    assert named in find_damage(checkpoint)


def test_ranks_share_the_digests(checkpoint):
    flip_a_bit(checkpoint / "b.safetensors")
    assert [find_damage(checkpoint, part, 3) is None for part in range(3)] == [True, False, True]


def test_the_weights_alone_are_looked_at_where_nothing_else_counts(checkpoint):
    flip_a_bit(checkpoint / "state.json")
    (checkpoint / "a.pt").unlink()
    check_weights(checkpoint)
    flip_a_bit(checkpoint / "b.safetensors")
    with pytest.raises(UserError, match=r"step_00000007 is damaged \(b\.safetensors has changed"):
        check_weights(checkpoint)
    (checkpoint / MANIFEST_FILE).unlink()
    check_weights(checkpoint)  # as of a converted one nothing is known


def make_complete(checkpoints, steps):
    for step in steps:
        checkpoint_path(checkpoints, step).mkdir()
        write_manifest(checkpoint_path(checkpoints, step), {})


def steps_left(checkpoints):
    return [int(path.name.removeprefix("step_")) for path in complete_checkpoints(checkpoints)]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "left"),
    [(0, 0, [0, 10, 20, 30, 40]), (2, 0, [0, 30, 40]), (1, 20, [0, 20, 40]), (9, 0, [0, 10, 20, 30, 40])],
)
def test_which_checkpoints_stay(tmp_path, keep_last, keep_every, left):
    make_complete(tmp_path, range(0, 50, 10))
    remove_outdated(tmp_path, keep_last, keep_every)
    assert steps_left(tmp_path) == left


def test_a_copy_under_another_name_is_left_alone(tmp_path):
    make_complete(tmp_path, [10, 20, 30])
    shutil.copytree(checkpoint_path(tmp_path, 10), tmp_path / "step_00000010_best")
    remove_outdated(tmp_path, 1, 0)
    assert steps_left(tmp_path) == [30] and (tmp_path / "step_00000010_best").is_dir()


def test_one_that_is_being_written_is_neither_counted_nor_removed(tmp_path):
    make_complete(tmp_path, [10, 20])
    checkpoint_path(tmp_path, 30).mkdir()
    assert remove_outdated(tmp_path, 2, 0) == []
    assert steps_left(tmp_path) == [10, 20] and checkpoint_path(tmp_path, 30).exists()


@pytest.mark.parametrize("name", ["state.pt", "model.safetensors"])
def test_a_write_that_failed_keeps_no_copy(tmp_path, name):
    """Its error stays for long; tensors that it held would be a checkpoint's worth of memory each time."""
    contents = {"later.pt": torch.ones(4), name: {"weight": torch.ones(4)}}
    copies = [weakref.ref(contents["later.pt"]), weakref.ref(contents[name]["weight"])]
    try:
        write_files(tmp_path / "absent", contents)
    except Exception as caught:
        error = caught
    assert error.__traceback__ is not None and [copy() for copy in copies] == [None, None]
