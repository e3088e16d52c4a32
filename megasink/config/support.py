"""What does not work together: the one table behind both the refusals and the support matrix of docs/layouts.md."""

from collections.abc import Callable
from dataclasses import dataclass

from megasink.config.run import RunConfig


@dataclass(frozen=True)
class Feature:
    """A choice of a run. `flag` is how a user asks for it."""

    name: str
    flag: str
    chosen: Callable[[RunConfig], bool]


@dataclass(frozen=True)
class Exclusion:
    """Two features, by name, that are refused together; `instead` says what to do."""

    first: str
    second: str
    because: str
    instead: str


def _zero(stage: int) -> Feature:
    return Feature(f"ZeRO-{stage}", f"--zero-stage {stage}", lambda run: run.parallel.zero_stage == stage)


FEATURES = [
    Feature("TP", "--tensor-model-parallel-size", lambda run: run.parallel.tensor_model_parallel_size > 1),
    Feature("SP", "--sequence-parallel", lambda run: run.parallel.sequence_parallel),
    Feature("PP", "--pipeline-model-parallel-size", lambda run: run.parallel.pipeline_model_parallel_size > 1),
    Feature("CP", "--context-parallel-size", lambda run: run.parallel.context_parallel_size > 1),
    _zero(0),
    _zero(1),
    _zero(2),
    _zero(3),
    Feature("recompute", "--recompute", lambda run: run.parallel.recompute != "none"),
    Feature("bf16", "--precision bf16", lambda run: run.training.precision == "bf16"),
    Feature("documents", "--reset-attention-mask", lambda run: run.model.reset_attention_mask),
    Feature("statistics", "--sink-stats", lambda run: run.sink_stats.sink_stats != "off"),
    Feature("replica check", "--check-replicas", lambda run: run.parallel.check_replicas > 0),
]

EXCLUSIONS = [
    Exclusion("PP", "ZeRO-2", "DeepSpeed's pipeline reduces gradients by itself", "use --zero-stage 1"),
    Exclusion("PP", "ZeRO-3", "DeepSpeed's pipeline reduces gradients by itself", "use --zero-stage 1"),
    Exclusion("bf16", "ZeRO-0", "DeepSpeed has no fp32 gradient accumulation there", "use --zero-stage 1"),
    Exclusion(
        "CP",
        "statistics",
        "they are not reduced over the parts of a sequence",
        "use --sink-stats off, and tools/analyze_ckpt.py on the checkpoints",
    ),
]


def refusal(run: RunConfig) -> str | None:
    """One line about the first two choices of a run that exclude each other, or None."""
    features = {feature.name: feature for feature in FEATURES}
    for exclusion in EXCLUSIONS:
        first, second = features[exclusion.first], features[exclusion.second]
        if first.chosen(run) and second.chosen(run):
            return f"{first.flag} does not work with {second.flag}: {exclusion.because}; {exclusion.instead}"
    return None


def support_matrix() -> str:
    """The table and its footnotes in Markdown."""
    names = [feature.name for feature in FEATURES]
    notes = {frozenset((exclusion.first, exclusion.second)): at for at, exclusion in enumerate(EXCLUSIONS, start=1)}
    rows = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row, name in enumerate(names):
        cells = []
        for column, other in enumerate(names):
            note = notes.get(frozenset((name, other)))
            one_of_a_kind = name.startswith("ZeRO") and other.startswith("ZeRO")
            cells.append("" if column >= row or one_of_a_kind else "yes" if note is None else f"no ({note})")
        rows.append(f"| **{name}** | " + " | ".join(cells) + " |")
    footnotes = [
        f"{at}. {exclusion.first} with {exclusion.second}: {exclusion.because}; {exclusion.instead}."
        for at, exclusion in enumerate(EXCLUSIONS, start=1)
    ]
    return "\n".join([*rows, "", *footnotes])


if __name__ == "__main__":
    print(support_matrix())
