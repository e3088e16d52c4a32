"""What happens to the data when a run goes on with other data than it began with.

The stream's coordinate is `consumed_samples`: batch size, micro-batch and data-parallel ranks may change freely. When
the datasets or weights change, each dataset goes on from the samples that it has given itself: none is repeated before
its epoch ends, none is skipped. A dataset that left and comes back goes on from where it was.
"""

from megasink.data.blend import STREAM_SCHEMA, BlendedDataset
from megasink.data.dataset import TokenDataset
from megasink.errors import UserError


def resume_blend(state: dict, blend: BlendedDataset) -> BlendedDataset:
    """The present `blend` (which begins at sample 0), going on from a checkpoint's `BlendedDataset.state`.

    Raises:
        UserError: another seq_length or seed (samples would not be the same ones), or shards that changed in place.
    """
    datasets = blend.datasets
    if state.get("schema") != STREAM_SCHEMA:
        raise UserError(f"the checkpoint's data state is not {STREAM_SCHEMA}; start a new run with --load")
    for name, flag in (("seq_length", "--seq-length"), ("seed", "--seed")):
        if state[name] != getattr(datasets[0], name):
            raise UserError(
                f"{flag} {getattr(datasets[0], name)}: the checkpoint's data was cut with {state[name]}, so it cannot "
                f"go on in the same order; resume with {flag} {state[name]}, or start a new run with --load"
            )
    known = [*state["blend"], *state["retired"]]
    matches = [_match(dataset, known) for dataset in datasets]
    unchanged = [entry["digest"] for entry in state["blend"]] == [dataset.digest for dataset in datasets]
    if unchanged and [entry["quota"] for entry in state["blend"]] == blend.quotas:
        bases = [entry["base"] for entry in state["blend"]]
        return BlendedDataset(datasets, blend.quotas, state["start"], bases, state["retired"])
    bases = [0 if entry is None else entry["given"] for entry in matches]
    left = [entry for entry in known if all(entry is not match for match in matches)]
    retired = [{key: entry[key] for key in ("prefix", "digest", "given")} for entry in left]
    return BlendedDataset(datasets, blend.quotas, state["consumed_samples"], bases, retired)


def _match(dataset: TokenDataset, known: list[dict]) -> dict | None:
    """The entry of the same documents: at the same prefix, or moved to another; None for a new dataset."""
    prefix = dataset.indexed.prefix
    same = [entry for entry in known if entry["digest"] == dataset.digest]
    if same:
        return next((entry for entry in same if entry["prefix"] == prefix), same[0])
    if any(entry["prefix"] == prefix for entry in known):
        raise UserError(
            f"{prefix}: not the documents that the checkpoint's run was reading (remade, or another --split); restore "
            "them, or give the new ones another prefix to count as new data"
        )
    return None
