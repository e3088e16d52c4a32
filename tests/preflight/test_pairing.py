"""Each pair of nodes is measured once, and no node is in two pairs at a time."""

from itertools import combinations

import pytest

from megasink.preflight.pairing import pair_rounds


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 7, 16])
def test_all_pairs_in_as_few_rounds_as_there_can_be(nodes):
    rounds = pair_rounds(nodes, limit=1000)
    assert len(rounds) == (0 if nodes == 1 else nodes - 1 + nodes % 2)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
    assert sorted(pair for pairs in rounds for pair in pairs) == sorted(combinations(range(nodes), 2))


@pytest.mark.parametrize("nodes", [9, 64, 65])
def test_a_few_rounds_have_every_node(nodes):
    rounds = pair_rounds(nodes, limit=2)
    assert len(rounds) == 2
    assert {node for pairs in rounds for pair in pairs for node in pair} == set(range(nodes))
