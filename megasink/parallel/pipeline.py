"""Which blocks each pipeline stage holds."""


def balanced_blocks(num_blocks: int, stages: int, block: int, before: int, after: int) -> list[int]:
    """Blocks per stage, at least one each, so that the largest stage is as small as it can be.

    Args:
        num_blocks: equal blocks, at least as many as stages.
        block, before, after: parameters of a block, of what precedes the first and of what follows the last.
    """
    assert num_blocks >= stages
    counts = [1] * stages
    loads = [block] * stages
    loads[0] += before
    loads[-1] += after
    for _ in range(num_blocks - stages):
        lightest = loads.index(min(loads))
        counts[lightest] += 1
        loads[lightest] += block
    return counts


def layer_bounds(blocks: list[int]) -> list[int]:
    """First layer of each stage and, last, the number of layers of [embedding, blocks ..., final norm, output]."""
    bounds = [0]
    for count in blocks:
        bounds.append(bounds[-1] + count)
    bounds = [bound + 1 for bound in bounds]  # the embedding precedes the first block
    bounds[0], bounds[-1] = 0, bounds[-1] + 2
    return bounds
