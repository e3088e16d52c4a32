"""`--cuda-graph`: the same run as without it."""

import json

import numpy as np
import pytest
import torch

from tests.helpers.jobs import metrics_without_times, train

FLAGS = [
    ("--v-scale", "on"),
    ("--no-untie-embeddings-and-output-weights", "--fp8", "hybrid", "--recompute", "selective"),
]


@pytest.mark.gpu  # on a CPU the same flag runs the same passes, without a graph
@pytest.mark.parametrize("flags", FLAGS)
def test_every_loss_norm_and_statistic_is_that_of_a_run_without_graphs(tokens, tmp_path, flags):
    """Three micro-batches a step; steps with light, full and no statistics; evaluations; resumed after four steps."""
    flags = (*flags, "--data-path", tokens, "--precision", "bf16", "--lr-decay-style", "constant")
    flags += ("--sink-stats", "full", "--sink-stats-interval", 2, "--sink-stats-full-interval", 5)
    flags += ("--eval-interval", 2, "--eval-iters", 1, "--split", "80,20,0", "--global-batch-size", 6, "--head-dim", 32)
    plain, graphs = tmp_path / "plain", tmp_path / "graphs"
    train(*flags, "--save", plain, "--train-iters", 8)
    train(*flags, "--save", graphs, "--cuda-graph", "--train-iters", 4)
    train(*flags, "--save", graphs, "--cuda-graph", "--train-iters", 8, "--auto-resume")
    assert metrics_without_times(graphs) == metrics_without_times(plain)
    reports = sorted(path.name for path in (plain / "sink_stats").glob("*.npz"))
    assert len(reports) == 6  # of steps 0, 2, 4, 5 and 6; and null
    for name in reports:
        with np.load(plain / "sink_stats" / name) as expected, np.load(graphs / "sink_stats" / name) as found:
            assert set(found) == set(expected)
            for figure in expected:
                np.testing.assert_array_equal(found[figure], expected[figure], err_msg=f"{name}: {figure}")


def test_replicas_take_their_own_micro_batches(tokens, tmp_path):
    flags = ("--data-path", tokens, "--precision", "bf16", "--train-iters", 3, "--global-batch-size", 12)
    flags += ("--head-dim", 32)
    train(*flags, "--save", tmp_path / "plain", ranks=2)
    train(*flags, "--save", tmp_path / "graphs", "--cuda-graph", ranks=2)
    assert metrics_without_times(tmp_path / "graphs") == metrics_without_times(tmp_path / "plain")


def test_a_diverged_run_is_diagnosed_as_it_is_without_graphs(tokens, tmp_path):
    """With statistics that no graph was recorded for."""
    flags = ("--data-path", tokens, "--precision", "bf16", "--sink-stats", "off")
    flags += ("--lr", 1e38, "--max-skipped-steps", 2)
    diagnoses = []
    for name, flag in (("plain", ()), ("graphs", ("--cuda-graph",))):
        train(*flags, *flag, "--save", tmp_path / name, "--train-iters", 9, expect=77)
        events = map(json.loads, (tmp_path / name / "events.jsonl").read_text().splitlines())
        diagnoses.append([event["diagnosis"] for event in events if event["event"] == "diverged"])
    assert len(diagnoses[0]) == 1 and diagnoses[0] == diagnoses[1]


WATCHED = """
import torch
from megasink.train import main, setup

def kept(run):
    nodes = [torch.autograd.graph.get_gradient_edge(weight).node for weight in run.engine.model.parameters()]
    for node in nodes:
        node.metadata["seen"] = True
    del node, nodes
    again = (torch.autograd.graph.get_gradient_edge(weight).node for weight in run.engine.model.parameters())
    return sum("seen" in node.metadata for node in again)

def watched(run):
    code = train(run)
    print("kept", kept(run), "graphs", len(run.engine.micro_batches.graphs))
    return code

train, setup.train = setup.train, watched
main()
"""


@pytest.mark.gpu
def test_autograd_keeps_nothing_of_what_came_before_a_graph_is_recorded(tokens, tmp_path):
    """A weight's node outlives a pass where something holds it (a history, say), and then runs on the stream that it
    was made on, which a recording on another stream cannot take in."""
    flags = ("--data-path", tokens, "--precision", "bf16", "--lr-decay-style", "constant", "--save", tmp_path)
    flags += ("--sink-stats-interval", 3, "--head-dim", 32)
    graphs = 4 if torch.cuda.is_available() else 0  # of two levels, first and further micro-batches of a step
    for steps in (2, 4):
        outcome = train(*flags, "--cuda-graph", "--auto-resume", "--train-iters", steps, program=WATCHED)
        assert outcome.lines("kept") == [f"kept 0 graphs {graphs}"], outcome.output
