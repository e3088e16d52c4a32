"""Two layouts side by side for 1,000 steps: do their losses stay together?

    PYTHONPATH=. python benchmarks/long_layouts.py          (minutes on 2 cores)

Faults in replicated key-value heads, and in norms under sequence parallelism, change a gradient by so little that ten
steps do not show them. Here one process and two ranks with TP + SP and a single key-value head learn the same
text; the largest relative difference of their losses is printed every 100 steps and must stay below the bound.
"""

import argparse
import sys

import torch

from megasink.train.distributed import start_distributed
from megasink.train.replicas import differing_parameter
from tests.helpers.layouts import GLOBAL_BATCH, Case, TinyEngine, layout_of, model_of, run_config
from tests.helpers.ranks import run_ranks

BOUND = 2e-2
CASES = {1: Case("one_key_value_head_tied", micro_batch=8), 2: Case("one_key_value_head_tied", tensor=2)}


def losses(world: int, steps: int) -> list[float]:
    """Losses of each step; ends early if replicas differ."""
    device = start_distributed()
    case = CASES[1] if world == 1 else CASES[2].on(CASES[2].model, sequence_parallel=True, micro_batch=8)
    layout = layout_of(case)
    engine = TinyEngine(run_config(case), layout, device)
    found = []
    for step in range(steps):
        found.append(engine.train_batch([text(case, step)]).item())
        if step % 100 == 99 and (difference := differing_parameter(engine.model, layout)) is not None:
            raise SystemExit(f"after step {step + 1} parameter {difference}")
    return found


def text(case: Case, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences with something to learn: each token is a fixed function of the two before it, one in ten is noise."""
    config = model_of(case.model)
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(config.vocab_size, (GLOBAL_BATCH, config.seq_length + 1), generator=generator)
    noise = torch.rand(tokens.shape, generator=generator) < 0.1
    for at in range(2, tokens.shape[1]):
        follows = (3 * tokens[:, at - 1] + tokens[:, at - 2] + 7) % config.vocab_size
        tokens[:, at] = torch.where(noise[:, at], tokens[:, at], follows)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: 1000)")
    steps = parser.parse_args().steps
    one, two = (run_ranks(world, losses, world, steps)[0] for world in CASES)
    differences = [abs(a / b - 1) for a, b in zip(two, one, strict=True)]
    for end in range(100, steps + 1, 100):
        largest = max(differences[end - 100 : end])
        print(f"steps {end - 99:>5} to {end:>5}: loss {one[end - 1]:.4f}, largest difference {largest:.1e}")
    print(f"largest difference {max(differences):.1e}, bound {BOUND:.0e}")
    sys.exit(max(differences) > BOUND)


if __name__ == "__main__":
    main()
