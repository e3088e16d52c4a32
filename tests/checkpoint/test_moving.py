"""A checkpoint saved under one layout goes on under another: 5 + 5 steps equal 10; what cannot move says so."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megasink.checkpoint.run_checkpoint import describe_layout, load_checkpoint
from megasink.checkpoint.saver import save_checkpoint
from megasink.checkpoint.trust import only_data
from megasink.checkpoint.universal import why_not_movable
from megasink.errors import UserError
from megasink.train.distributed import start_distributed
from tests.helpers.layouts import Case, TinyEngine, batch_of, layout_of, run_config, train, whole_weights
from tests.helpers.ranks import run_ranks

SAVED = {  # name: (ranks, layout)
    "tp2_pp2": (4, Case("v_scale_tied", tensor=2, pipeline=2)),
    "tp4_replicated_heads": (4, Case("v_scale_gqa", tensor=4, sequence_parallel=True)),
    "tp2_pp2_bf16": (4, Case("v_scale_gqa", tensor=2, pipeline=2, precision="bf16")),
    "dp2_zero2": (2, Case("v_scale_gqa", zero=2)),
    "dp2_zero0": (2, Case("v_scale_tied", zero=0)),
    "tp2_zero3": (2, Case("v_scale_gqa", tensor=2, zero=3)),
}
RESUMED = {  # ranks: [(name of what was saved, layout)]
    1: [
        ("tp2_pp2", Case("v_scale_tied")),
        ("tp4_replicated_heads", Case("v_scale_gqa")),
        ("tp2_pp2_bf16", Case("v_scale_gqa", precision="bf16")),
        ("dp2_zero2", Case("v_scale_gqa")),
    ],
    2: [
        ("tp2_pp2", Case("v_scale_tied", pipeline=2)),
        ("tp2_pp2", Case("v_scale_tied", pipeline=2, split="3,1")),
        ("tp2_pp2", Case("v_scale_tied", zero=1)),
        ("tp2_pp2", Case("v_scale_tied", zero=2)),
        ("tp4_replicated_heads", Case("v_scale_gqa", tensor=2)),
        ("dp2_zero2", Case("v_scale_gqa", tensor=2)),
        ("dp2_zero2", Case("v_scale_gqa", zero=2)),
        ("dp2_zero0", Case("v_scale_tied", zero=0)),
        ("tp2_zero3", Case("v_scale_gqa", tensor=2, zero=3)),
    ],
    4: [
        ("dp2_zero2", Case("v_scale_gqa", tensor=2, pipeline=2)),
        ("tp4_replicated_heads", Case("v_scale_gqa", tensor=4)),
        ("tp2_pp2", Case("v_scale_tied", tensor=2, pipeline=2)),
    ],
}


def train_and_save(folder: str, cases: dict[str, Case]) -> dict[str, list[float]]:
    """Losses of the five steps after the save."""
    losses = {}
    for name, case in cases.items():
        engine, config, layout = build(case)
        for step in range(5):
            engine.train_batch(batch_of(case, step, layout))
        run = Path(folder) / name
        run.mkdir(exist_ok=True)
        save_checkpoint(run, {"step": 5}, engine.model, config, layout, engine.engine)
        losses[name] = [engine.train_batch(batch_of(case, step, layout)).item() for step in range(5, 10)]
    return losses


def resume_and_train(folder: str, cases: list[tuple[str, Case]]) -> list[dict]:
    results = []
    for name, case in cases:
        engine, config, layout = build(case)
        state = load_checkpoint(Path(folder) / name / "step_00000005", config, layout, engine.engine)
        losses = [engine.train_batch(batch_of(case, step, layout)).item() for step in range(state["step"], 10)]
        results.append({"losses": losses, "weights": whole_weights(engine, config, layout)})
    return results


def straight_through(cases: list[Case]) -> list[dict]:
    return [train(case) for case in cases]


def build(case: Case):
    device = start_distributed()
    layout, config = layout_of(case), run_config(case)
    return TinyEngine(config, layout, device), config, layout


@pytest.fixture(scope="module")
def saved_and_gone_on(tmp_path_factory) -> tuple[str, dict[str, list[float]]]:
    folder, losses = str(tmp_path_factory.mktemp("saved")), {}
    for ranks in (2, 4):
        cases = {name: case for name, (n, case) in SAVED.items() if n == ranks}
        losses |= run_ranks(ranks, train_and_save, folder, cases)[0]
    return folder, losses


@pytest.fixture(scope="module")
def saved(saved_and_gone_on) -> str:
    return saved_and_gone_on[0]


@pytest.fixture(scope="module")
def ten_steps() -> dict[tuple[str, str], dict]:
    keys = [("v_scale_tied", "fp32"), ("v_scale_gqa", "fp32"), ("v_scale_gqa", "bf16")]
    cases = [Case(model, precision=precision) for model, precision in keys]
    return dict(zip(keys, run_ranks(1, straight_through, cases)[0], strict=True))


@pytest.mark.parametrize("ranks", RESUMED)
def test_loss_curve_and_weights_go_on(saved_and_gone_on, ten_steps, ranks):
    """Under the same layout to the last bit."""
    saved, gone_on = saved_and_gone_on
    resumed = run_ranks(ranks, resume_and_train, saved, RESUMED[ranks])
    for index, (name, case) in enumerate(RESUMED[ranks]):
        expected, bound = ten_steps[case.model, case.precision], 1e-5 if case.precision == "fp32" else 2e-3
        for rank in (each[index] for each in resumed):
            where = f"{name} on {ranks} ranks as {case}"
            assert rank["losses"] == pytest.approx(expected["losses"][5:10], rel=bound), where
            if case == SAVED[name][1]:
                assert rank["losses"] == gone_on[name], where
            for weight_name, weight in rank["weights"].items():
                reference = expected["weights"][weight_name].double()
                difference = (weight.double() - reference).norm() / reference.norm()
                assert difference <= 2 * bound, f"{where}: {weight_name} {difference:.2e}"


def test_nothing_is_left_behind(saved):
    """The universal form is as large as the checkpoint; it is removed after the resume."""
    assert [path.name for path in Path(saved).glob("*/.universal-*")] == []


@pytest.mark.parametrize(
    ("saved_stage", "now_stage", "part"),
    [
        (3, 1, "cannot become ZeRO-1's"),
        (2, 3, "cannot become ZeRO-3's"),
        (0, 1, "cannot become ZeRO-1's"),
        (3, 3, "resumes under its own layout only"),
        (0, 0, "resumes under its own layout only"),
    ],
)
def test_what_cannot_move_is_refused_in_words(tmp_path, saved_stage, now_stage, part):
    now = run_config(Case("v_scale_gqa", zero=now_stage))
    layout = layout_of(Case("v_scale_gqa"))
    was = describe_layout(now, layout) | {"zero_stage": saved_stage, "data_parallel": 2}
    (tmp_path / "state.json").write_text(f'{{"step": 1, "layout": {was}}}'.replace("'", '"'))
    with pytest.raises(UserError, match=part) as caught:
        load_checkpoint(tmp_path, now, layout, engine=None)
    assert "data_parallel 2 (now 1)" in str(caught.value) and "--load" in str(caught.value)


def test_another_precision_is_refused_in_words():
    layout = describe_layout(run_config(Case("v_scale_gqa")), layout_of(Case("v_scale_gqa")))
    assert "bf16 training" in why_not_movable(layout | {"precision": "bf16"}, layout)


def test_movable_layouts_have_no_refusal():
    layout = describe_layout(run_config(Case("v_scale_gqa")), layout_of(Case("v_scale_gqa")))
    for stages in ((1, 1), (1, 2), (2, 1), (2, 2)):
        assert why_not_movable(layout | {"zero_stage": stages[0]}, layout | {"zero_stage": stages[1]}) is None


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch /tmp/layouts-was-here",)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    """DeepSpeed passes weights_only=False; a file from elsewhere must not run code all the same."""
    torch.save({"module": RunsCode()}, tmp_path / "mp_rank_00_model_states.pt")
    with only_data(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "mp_rank_00_model_states.pt", weights_only=False)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def damage_and_load(folder: str, case: Case) -> str:
    engine, config, layout = build(case)
    checkpoint = Path(folder) / "step_00000005"
    if layout.tensor.rank == 0:
        for path in checkpoint.glob("*optim_states.pt"):
            path.write_bytes(path.read_bytes()[:1000])
    torch.distributed.barrier()
    try:
        load_checkpoint(checkpoint, config, layout, engine.engine)
    except UserError as error:
        return str(error)
    return "loaded"


def test_damaged_files_are_one_line_on_every_rank(saved):
    """A conversion that fails on rank 0 must not leave the others waiting."""
    folder = f"{saved}/dp2_zero2"
    for said in run_ranks(2, damage_and_load, folder, replace(SAVED["dp2_zero2"][1], zero=1)):
        assert "cannot be converted" in said and "\n" not in said
