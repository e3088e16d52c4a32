"""`--cuda-graph`: the same run as without it."""

import numpy as np
import pytest

from tests.helpers.jobs import metrics_without_times, train


@pytest.mark.gpu  # on a CPU the same flag runs the same passes, without a graph
@pytest.mark.parametrize("flags", [("--v-scale", "on"), ("--no-untie-embeddings-and-output-weights",)])
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
