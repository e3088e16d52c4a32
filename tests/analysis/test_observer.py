"""What analysis looks at beyond the live report, against naive loops over explicit matrices."""

import numpy as np
import pytest
import torch

from megasink.analysis import exact
from megasink.analysis.exact import ORDER_FIGURES, attention_received, gu_alphas, order_statistics
from megasink.analysis.measure import measure
from megasink.analysis.observer import Wanted
from megasink.analysis.subject import MegasinkSubject
from megasink.model.documents import first_tokens
from megasink.stats.measures import Tokens
from tests.analysis.runs import trained
from tests.helpers.tiny import tiny_config

IDS = np.array([[0] * 9 + [1] * 15, [0] * 1 + [1] * 20 + [2] * 3, [0] * 24])


def subject_for(**changes) -> MegasinkSubject:
    return MegasinkSubject(trained(tiny_config(**changes)).double().requires_grad_(False))


def samples(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(91, size=(count, 25))


def run(subject, level="full", ids=None, wanted=None, **options):
    wanted = wanted or Wanted((0, "auto", 2), (0.1, 0.2))
    return measure(subject, samples(), 1, lambda tokens: None, level, ids, wanted, **options)


def test_order_statistics_are_exact():
    states = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 7, 11)))
    states[1, 3, 4] = -5000.0
    found = order_statistics(states)
    for row, sequence in zip(found, states.abs().flatten(1).numpy(), strict=True):
        figures = dict(zip(ORDER_FIGURES, row.tolist(), strict=True))
        assert [figures[f"top{rank}"] for rank in (1, 2, 3)] == sorted(sequence)[:-4:-1]
        for name, share in (("median", 0.5), ("q99", 0.99), ("q999", 0.999)):
            assert figures[name] == pytest.approx(np.quantile(sequence, share), rel=1e-12)
    assert found[:, 6].tolist() == [0, 1]
    assert found[1, 7:].tolist() == [3, 4]


@pytest.mark.parametrize("ids", [None, IDS], ids=["whole sequences", "documents"])
def test_attention_received_equals_the_explicit_matrix(monkeypatch, ids):
    monkeypatch.setattr(exact, "_ROWS", 10)
    rng = np.random.default_rng(2)
    query, key = (torch.from_numpy(rng.normal(size=(3, 4, 24, 8))) for _ in range(2))
    document = torch.zeros(3, 24, dtype=torch.int64) if ids is None else torch.from_numpy(ids)
    first = first_tokens(document)
    visible = (document[:, :, None] == document[:, None]) & torch.ones(24, 24, dtype=torch.bool).tril()
    logits = (query @ key.transpose(-1, -2) / 8**0.5).masked_fill(~visible[:, None], -torch.inf)
    attention = logits.softmax(dim=-1)
    later = visible & ~torch.eye(24, dtype=torch.bool)
    expected = (attention * later[:, None]).sum(dim=-2) / later.sum(dim=-2).clamp(min=1)[:, None]
    first_token = None if ids is None else first
    tokens = Tokens(3, 24, query.device, first_token)
    found = attention_received(query, key, logits.logsumexp(dim=-1), tokens, first_token)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)

    whole = 24 if ids is None else min(64, 24)  # Gu's prefix: only documents as long as that count
    rows = [b for b in range(3) if ids is None or (ids[b] == 0).sum() == whole]
    expected = attention[rows].sum(dim=-2) / torch.arange(24, 0, -1)
    torch.testing.assert_close(gu_alphas(query, key, tokens), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("ids", [None, IDS], ids=["whole sequences", "documents"])
def test_figures_by_unit_average_to_the_report(ids):
    """Weighted by what each unit counts for; a document of one token is none."""
    subject = subject_for(v_scale="on", reset_attention_mask=ids is not None)
    result = run(subject, ids=ids)
    found, report = result.per_sequence, result.report
    queries = found["tokens"] - 1
    np.testing.assert_allclose(
        queries @ found["attention_sink"] / queries.sum(), report["attention_sink"].mean(axis=1), rtol=1e-9
    )
    np.testing.assert_array_equal(found["gradient_sink_ratio"].T, report["gradient_sink_ratio"])
    np.testing.assert_allclose(found["hidden_t0_over_early"].mean(axis=0), report["hidden_t0_over_early"], rtol=1e-9)
    np.testing.assert_allclose(found["gradient_over_others_0"], found["gradient_sink_ratio"], rtol=1e-9)
    assert len(found["loss"]) == len(found["tokens"]) == (3 if ids is None else 5)


def test_documents_are_units_of_their_own():
    """Two documents in one sequence give what the same documents give in sequences of their own."""
    subject = subject_for(reset_attention_mask=True, reset_position_ids=True)
    text = samples(1)
    ids = np.array([[0] * 12 + [1] * 12])
    packed = measure(subject, text, 1, lambda tokens: None, "forward", ids, Wanted((0, "auto")))
    apart = np.stack([text[0, :13], text[0, 12:]])
    alone = measure(subject, apart, 1, lambda tokens: None, "forward", np.zeros((2, 12), int), Wanted((0, "auto")))
    for name, values in alone.per_sequence.items():
        np.testing.assert_allclose(packed.per_sequence[name], values, rtol=1e-9, err_msg=name)


def test_a_planted_sink_is_found_where_it_is():
    """One token's key is made to attract every query; `auto` finds it, position 0 does not have it."""
    subject = subject_for()
    text = np.random.default_rng(3).integers(10, size=(3, 25))
    text[:, 5] = 90
    for block in subject.blocks:
        block.input_layernorm.weight.fill_(1.0)
        block.self_attn.q_proj.weight.zero_()
        block.self_attn.k_proj.weight.zero_()
    width = subject.shape.kv_channels
    still = width // 2 - 1  # turns slowest
    embedding = subject.module.get_submodule("0").weight
    direction = torch.zeros(subject.shape.hidden_size, dtype=torch.float64)
    direction[0] = 1.0
    embedding[:, 0] = 1.0
    embedding[90] = 0.0
    embedding[90, 0] = 20.0
    block = subject.blocks[0].self_attn
    for heads, weight in ((4, block.q_proj.weight), (2, block.k_proj.weight)):
        weight.view(heads, width, -1)[:, still] = 4.0 * direction
    result = measure(subject, text, 1, lambda tokens: None, "full", None, Wanted((0, "auto"), (0.3,)))
    assert (result.per_sequence["position_auto"][:, 0] == 5).all()
    assert (result.per_sequence["attention_to_auto"][:, 0] > 0.9).all()
    assert (result.per_sequence["attention_to_0"][:, 0] < 0.2).all()
    assert (result.report["gu_sink_by_threshold"][0, :, 0, 5] == 1).all()


@pytest.mark.parametrize("ids", [None, IDS], ids=["whole sequences", "documents"])
def test_shares_of_the_heads_add_up_to_the_value_path(ids):
    subject = subject_for(v_scale="on", reset_attention_mask=ids is not None)
    report = run(subject, ids=ids).report
    if ids is None:  # with documents the live share counts those of one token too
        expected = report["attention_g2_value_share"][:, 0]
        np.testing.assert_allclose(report["value_path_share_by_head"].sum(axis=1), expected, rtol=1e-9)
    assert (report["value_path_share_by_head"] != 0).all()


def test_each_heads_share_is_what_detaching_it_takes_away():
    """By autograd: g2 at token 0 with and without one head's values, in the last layer, where nothing else changes."""
    subject = subject_for(v_scale="on")
    text = torch.from_numpy(samples())
    last = subject.blocks[-1]

    def g2(head: int | None) -> torch.Tensor:
        kept = {}

        def norm_hook(_module, _args, output):
            output.requires_grad_(True)
            output.register_hook(lambda gradient: kept.update(g2=gradient[:, 0]))

        def scale_hook(_module, args):
            if head is None:
                return None
            value = args[0].clone()
            value[:, :, head] = args[0][:, :, head].detach()
            return (value, *args[1:])

        hooks = [
            last.input_layernorm.register_forward_hook(norm_hook),
            last.self_attn.v_scale.register_forward_pre_hook(scale_hook),
        ]
        subject.token_losses(text).sum().backward()
        for hook in hooks:
            hook.remove()
        return kept["g2"]

    whole = g2(None)
    found = run(subject).report["value_path_share_by_head"][-1]
    for head in range(2):
        part = whole - g2(head)
        share = (part * whole).sum(dim=-1) / whole.square().sum(dim=-1)
        np.testing.assert_allclose(found[head], share.mean(), rtol=1e-8)


def test_the_counterfactual_changes_the_backward_pass_alone():
    subject = subject_for(v_scale="on")
    whole, cut = (run(subject, detach_values=values).report for values in (False, True))
    for name in ("attention_sink", "hidden_norm", "value_norm", "mlp_out_norm"):
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-12)
    np.testing.assert_allclose(cut["attention_g2_value_norm"], 0.0, atol=1e-30)
    # in the last layer nothing changes above, so what is left is exactly what keys and queries carried
    others = 1 - whole["attention_g2_value_share"][-1, 0]
    assert others != pytest.approx(1.0, abs=0.05)
    assert cut["attention_g2_norm"][-1, 0] < whole["attention_g2_norm"][-1, 0]
    np.testing.assert_allclose(cut["attention_g2_key_norm"][-1], whole["attention_g2_key_norm"][-1], rtol=1e-9)


@pytest.mark.parametrize("v_scale", ["off", "on"])
def test_a_forward_pass_alone_gives_the_same_figures(v_scale):
    subject = subject_for(v_scale=v_scale)
    whole, alone = run(subject), run(subject, level="forward")
    assert not [name for name in alone.report.arrays if "grad" in name or "_g2_" in name]
    assert {"attention_sink", "hidden_norm", "attention_entropy", "value_hat_norm"} <= alone.report.arrays.keys()
    for name, array in alone.report.arrays.items():
        np.testing.assert_allclose(array, whole.report[name], rtol=1e-10, atol=1e-14, err_msg=name)
    for name, array in alone.per_sequence.items():
        np.testing.assert_allclose(array, whole.per_sequence[name], rtol=1e-10, err_msg=name)
    assert alone.loss == pytest.approx(whole.loss, rel=1e-12)
