"""Live and post hoc are one formula: a resumed run's first report is the analysis of its checkpoint on that batch."""

import shlex

import numpy as np
import torch

from megasink.analysis.measure import measure
from megasink.analysis.observer import Wanted
from megasink.analysis.source import find_source, load_subject
from megasink.data import build_dataset
from megasink.data.sampler import global_batch
from megasink.stats.report import SinkReport
from tests.helpers.jobs import train, write_tokens
from tests.stats.test_against_reference import FROM_HISTOGRAM, HALF_BIN

FLAGS = shlex.split(
    """
    --lr-decay-style constant --save-interval 2 --split 80,20,0 --v-scale on --init-method-std 0.2
    --reset-attention-mask --sink-stats full --sink-stats-interval 1 --sink-stats-full-interval 1
    """
)


def test_first_report_after_a_resume_equals_the_analysis_of_the_checkpoint(tmp_path):
    """With packed documents kept apart, so that position 0 is each document's first token in both."""
    run = tmp_path / "run"
    flags = ["--data-path", write_tokens(tmp_path / "tiny"), *FLAGS, "--save", run]
    train(*flags, "--train-iters", 2)
    train(*flags, "--train-iters", 3, "--auto-resume")
    live = SinkReport.load(run / "sink_stats" / "step_00000002.npz")

    source = find_source(run / "checkpoints" / "step_00000002")
    training = source.config.training
    consumed = 2 * training.global_batch_size
    data = source.config.data
    dataset = build_dataset(data.data_path, data.split, "train", source.config.model.seq_length, training.seed)
    samples = global_batch(dataset, consumed, training.global_batch_size, training.micro_batch_size, 0, 1, 64)
    ids = np.stack([dataset.document_ids(consumed + row) for row in range(training.global_batch_size)])
    assert ids.max() > 0
    subject = load_subject(source, torch.device("cpu"))
    samples = samples.reshape(-1, samples.shape[-1])
    ids = ids[:, :-1].astype(np.int64)
    post_hoc = measure(subject, samples, 2, lambda tokens: None, document_ids=ids, wanted=Wanted()).report

    assert post_hoc.meta.items() >= live.meta.items()
    for name, array in live.arrays.items():
        tolerance = HALF_BIN if name.endswith(FROM_HISTOGRAM) else 1e-4
        scale = np.nanmax(np.abs(array), initial=0.0)
        np.testing.assert_allclose(post_hoc[name], array, rtol=tolerance, atol=1e-6 * scale, err_msg=name)
    np.testing.assert_allclose(post_hoc["theta"], live["theta"], rtol=1e-6)
