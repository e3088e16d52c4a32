"""--check-replicas sees one flipped bit in any copy, and nothing where all is well."""

import torch

from megasink.train.distributed import start_distributed
from megasink.train.replicas import differing_parameter
from tests.helpers.layouts import Case, TinyEngine, batch_of, layout_of, run_config
from tests.helpers.ranks import run_ranks

CASES = [
    Case("one_key_value_head_tied", tensor=2, sequence_parallel=True),
    Case("v_scale_tied", pipeline=2),
    Case("v_scale_gqa", zero=2),
    Case("v_scale_gqa", zero=3),
    Case("v_scale_gqa", context=2, precision="bf16"),
]
DAMAGED = ["1.self_attn.k_proj.weight", "tied_modules.embed.weight", "2.mlp.up_proj.weight", None, "5.weight"]


def look() -> list[tuple[str | None, str | None]]:
    """What is found after two steps, and after the last bit of one value was flipped on the last rank."""
    found = []
    for case, damaged in zip(CASES, DAMAGED, strict=True):
        device = start_distributed()
        layout = layout_of(case)
        engine = TinyEngine(run_config(case), layout, device)
        for step in range(2):
            engine.train_batch(batch_of(case, step, layout))
        sound = differing_parameter(engine.model, layout)
        parameters = dict(engine.model.named_parameters())
        if torch.distributed.get_rank() == 1 and damaged is not None:
            bits = parameters[damaged].data.view(-1).view(torch.int32 if case.precision == "fp32" else torch.int16)
            bits[3] ^= 1
        found.append((sound, differing_parameter(engine.model, layout)))
    return found


def test_a_flipped_bit_is_found_and_named():
    for rank in run_ranks(2, look):
        for case, damaged, (sound, after) in zip(CASES, DAMAGED, rank, strict=True):
            assert sound is None, case
            if damaged is None:
                assert after is None, case
            elif damaged.startswith("tied"):
                assert "tied embedding differs" in after, case
            else:
                assert after.startswith(f"{damaged} differs between"), case
