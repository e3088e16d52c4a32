"""Planted numbers: the node that stands out is named, with the reason, and no other."""

import copy

import pytest

from megasink.preflight.config import PreflightConfig
from megasink.preflight.judge import judge
from megasink.preflight.report import table, verdicts
from megasink.preflight.summary import Node, node_of

CONFIG = PreflightConfig()


def rank_facts(rank: int, others: list[str]) -> dict:
    """What a healthy rank finds."""
    return {
        "rank": rank,
        "all": {"gb_s": 45.0, "us": 60.0},
        "clock_offset_s": 0.001 * rank,
        "compute": {"tflops": 700.0 + rank, "gpu": {"sm_mhz": 1755.0, "same": {"GPU": "H100", "driver": "570.1"}}},
        "disk": {"write_s": 0.5, "read_s": 0.25},
        "within": {"gb_s": 440.0 + rank, "us": 25.0},
        "pairs": {name: {"gb_s": 47.0, "us": 38.0} for name in others},
        "memory_gib": 2015.0,
        "free_gib": {"run folder": 900.0, "temporary folder": 80.0, "/dev/shm": 1000.0},
        "same": {"torch": "2.13.0", "kernel": "6.8"},
        "transports": {"within": "NVLS + P2P/CUMEM", "between": "NET/IB/GDRDMA", "network devices": "8"},
    }


def facts(nodes: int = 4) -> dict[str, list[dict]]:
    names = [f"n{at}" for at in range(nodes)]
    return {
        name: [rank_facts(2 * at + local, [other for other in names if other != name]) for local in range(2)]
        for at, name in enumerate(names)
    }


def summarised(found: dict[str, list[dict]]) -> list[Node]:
    return [node_of(name, ranks, file_mib=1024) for name, ranks in found.items()]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_healthy_nodes_are_not_bad(nodes):
    assert judge(summarised(facts(nodes)), CONFIG) == {}


def slow_within(ranks):
    for rank in ranks:
        rank["within"]["gb_s"] = 200.0


def slow_small_messages(ranks):
    ranks[0]["within"]["us"] = 90.0


def sockets(ranks):
    for rank in ranks:
        rank["transports"]["between"] = "NET/Socket"


def lost_network_device(ranks):
    for rank in ranks:
        rank["transports"]["network devices"] = "7"


def old_driver(ranks):
    for rank in ranks:
        rank["compute"]["gpu"]["same"]["driver"] = "550.9"


def one_slow_gpu(ranks):
    ranks[1]["compute"]["tflops"] = 400.0


def low_clock(ranks):
    ranks[1]["compute"]["gpu"]["sm_mhz"] = 1200.0


def throttled(ranks):
    ranks[1]["compute"]["gpu"]["fault"] = "hardware thermal slowdown"


def wrong_clock(ranks):
    ranks[0]["clock_offset_s"] = -7.0


def slow_disk(ranks):
    ranks[1]["disk"]["write_s"] = 5.0


def other_folder(ranks):
    ranks[0]["disk"] = {"write_s": 0.5, "fault": "does not see what n1 wrote"}


def full_disk(ranks):
    ranks[0]["free_gib"]["run folder"] = 0.2


def other_torch(ranks):
    for rank in ranks:
        rank["same"]["torch"] = "2.12.1"


def two_kinds_of_gpu(ranks):
    ranks[1]["compute"]["gpu"]["same"]["GPU"] = "H200"


PLANTED = {
    slow_within: "within bandwidth 200 GB/s",
    slow_small_messages: "within latency 90 us",
    sockets: "NCCL between NET/Socket",
    lost_network_device: "NCCL network devices 7",
    old_driver: "driver 550.9",
    one_slow_gpu: "matrix product 400 TFLOP/s",
    low_clock: "SM clock 1200 MHz",
    throttled: "hardware thermal slowdown",
    wrong_clock: "clock -7.0",
    slow_disk: "write speed",
    other_folder: "does not see what n1 wrote",
    full_disk: "0.20 GiB free in the run folder",
    other_torch: "torch 2.12.1",
    two_kinds_of_gpu: "GPU H200",
}


@pytest.mark.parametrize("nodes", [2, 4])
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_the_planted_node_is_named_and_why(plant, nodes):
    found = facts(nodes)
    plant(found["n1"])
    bad = judge(summarised(found), CONFIG)
    assert list(bad) == ["n1"]
    assert any(PLANTED[plant] in reason for reason in bad["n1"]), bad
    (line,) = verdicts(bad)
    assert line.startswith("megasink: BAD n1: ")


def set_pair(found: dict, one: str, other: str, gb_s: float) -> None:
    found[one][0]["pairs"][other]["gb_s"] = found[other][0]["pairs"][one]["gb_s"] = gb_s


def test_a_node_slow_with_all_others_is_named_and_they_are_not():
    found = facts()
    for other in ("n0", "n1", "n3"):
        set_pair(found, "n2", other, 12.0)
    bad = judge(summarised(found), CONFIG)
    assert list(bad) == ["n2"] and "pair bandwidth 12 GB/s" in bad["n2"][0]


def test_a_slow_link_between_two_sound_nodes_is_named_as_a_pair():
    found = facts()
    set_pair(found, "n0", "n3", 12.0)
    assert list(judge(summarised(found), CONFIG)) == ["n0 with n3"]


def test_rank_0_with_the_wrong_clock_is_named_itself():
    found = facts()
    for name in ("n1", "n2", "n3"):
        found[name][0]["clock_offset_s"] = 7.0
    bad = judge(summarised(found), CONFIG)
    assert list(bad) == ["n0"] and "clock -7.0" in bad["n0"][0]


def test_one_slow_device_is_found_on_a_single_node():
    found = facts(nodes=1)
    one_slow_gpu(found["n0"])
    assert list(judge(summarised(found), CONFIG)) == ["n0"]


def test_floors_count_where_all_nodes_are_equal():
    bad = judge(summarised(facts(2)), PreflightConfig(min_within_gb_s=450.0, min_pair_gb_s=48.0))
    assert set(bad) == {"n0", "n1"} and all(len(reasons) == 2 for reasons in bad.values())


def test_judging_changes_nothing_and_the_table_marks_the_bad_node():
    found = facts()
    slow_within(found["n1"])
    nodes = summarised(found)
    before = copy.deepcopy(nodes)
    bad = judge(nodes, CONFIG)
    assert nodes == before
    marked = [line for line in table(nodes, None, bad).splitlines() if line.endswith("BAD")]
    assert len(marked) == 1 and marked[0].startswith("n1 ")
