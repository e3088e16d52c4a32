"""Which nodes are measured with each other, and when."""


def pair_rounds(nodes: int, limit: int) -> list[list[tuple[int, int]]]:
    """A round-robin tournament: in each round a node is in at most one pair, over all rounds each pair comes once.

    An even number of nodes needs nodes - 1 rounds, an odd one nodes, with one node idle in each. Beyond `limit` rounds
    only so many are taken, evenly spaced; two of them have every node.
    """
    players = nodes + nodes % 2
    rounds = []
    for turn in range(players - 1):
        # the last player stays, the others go round a circle
        seats = [(turn + seat) % (players - 1) for seat in range(players - 1)] + [players - 1]
        pairs = [tuple(sorted((seats[at], seats[-1 - at]))) for at in range(1, players // 2)]
        pairs.append(tuple(sorted((seats[0], seats[-1]))))
        rounds.append(sorted(pair for pair in pairs if pair[1] < nodes))
    kept = min(limit, len(rounds))
    return [rounds[turn * len(rounds) // kept] for turn in range(kept)] if nodes > 1 else []
