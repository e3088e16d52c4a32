"""Going on with the same data is exact; with other data each dataset goes on from what it has given itself."""

import json
from collections import defaultdict

import pytest

from megasink.data.build import build_dataset
from megasink.data.resume import resume_blend
from megasink.errors import UserError
from tests.data.shards import write_shards

T = 4


@pytest.fixture
def shards(tmp_path):
    return {name: write_shards(tmp_path / name, [50, 30, 11], 1000 * at) for at, name in enumerate("abc")}


def build(*data_path: str, resume: dict | None = None, seq_length: int = T, seed: int = 1, split: str | None = None):
    blend = build_dataset(data_path, split, "train", seq_length, seed)
    return blend if resume is None else resume_blend(resume, blend)


def through_json(state: dict) -> dict:
    return json.loads(json.dumps(state))


def read(dataset, start: int, stop: int) -> dict[str, list[int]]:
    """prefix -> the numbers within it of the samples start ... stop - 1."""
    numbers = defaultdict(list)
    for index in range(start, stop):
        which, number = dataset.locate(index)
        numbers[dataset.datasets[which].indexed.prefix].append(number)
    return numbers


def test_the_same_data_is_the_same_stream(shards):
    path = ("0.7", shards["a"], "0.3", shards["b"])
    whole = build(*path)
    for stop in (0, 1, 17, 200):
        resumed = build(*path, resume=through_json(build(*path).state(stop)))
        assert [resumed.sample(i).tolist() for i in range(stop, stop + 60)] == [
            whole.sample(i).tolist() for i in range(stop, stop + 60)
        ]


def test_changed_weights_skip_and_repeat_nothing(shards):
    first = build("0.7", shards["a"], "0.3", shards["b"])
    before = read(first, 0, 101)
    second = build("0.1", shards["a"], "0.9", shards["b"], resume=through_json(first.state(101)))
    after = read(second, 101, 300)
    for prefix in (shards["a"], shards["b"]):
        numbers = before[prefix] + after[prefix]
        assert numbers == list(range(len(numbers)))
    assert len(after[shards["b"]]) > 4 * len(after[shards["a"]])


def test_datasets_join_leave_and_come_back(shards):
    numbers = defaultdict(list)
    state, consumed = None, 0
    blends = [("a",), ("a", "b"), ("b",), ("c", "b"), ("a", "b", "c")]
    for names in blends:
        data_path = [word for name in names for word in ("1", shards[name])] if len(names) > 1 else [shards[names[0]]]
        dataset = build(*data_path, resume=state)
        for prefix, found in read(dataset, consumed, consumed + 37).items():
            numbers[prefix] += found
        consumed += 37
        state = through_json(dataset.state(consumed))
        # a resume in the middle of a blend changes nothing
        again = build(*data_path, resume=state)
        assert again.locate(consumed) == dataset.locate(consumed)
    for name, found in numbers.items():
        assert found == list(range(len(found))), name
    assert len(numbers) == 3


def test_moved_shards_are_the_same_data(shards, tmp_path):
    first = build(shards["a"])
    (tmp_path / "elsewhere").mkdir()
    moved = write_shards(tmp_path / "elsewhere" / "a", [50, 30, 11])
    resumed = build(moved, resume=first.state(23))
    assert resumed.sample(23).tolist() == first.sample(23).tolist()


@pytest.mark.parametrize("change", [{"seq_length": 5}, {"seed": 2}])
def test_another_seq_length_or_seed_is_refused(shards, change):
    with pytest.raises(UserError, match="the checkpoint's data was cut with"):
        build(shards["a"], resume=build(shards["a"]).state(8), **change)


def test_shards_that_changed_in_place_are_refused(shards, tmp_path):
    state = build(shards["a"]).state(8)
    write_shards(tmp_path / "a", [50, 30, 12])
    with pytest.raises(UserError, match="not the documents that the checkpoint's run was reading"):
        build(shards["a"], resume=state)


def test_another_split_is_refused(shards):
    state = build(shards["a"], split="2,1,0").state(8)
    with pytest.raises(UserError, match="another --split"):
        build(shards["a"], split="1,2,0", resume=state)
