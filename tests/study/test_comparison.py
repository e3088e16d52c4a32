"""What the page shows: states, series, means over seeds, differences from the baseline of the same seed."""

import json
import re

import filelock
import pytest

from megasink.study.comparison import FIGURES, TRAINING_LOSS, StudySeries, mean_over_seeds
from megasink.study.page import write_page
from megasink.study.run_folder_reader import ENDED, read_progress, read_series
from megasink.study.study_file import load_study
from tests.study.files import write_last_checkpoint, write_run, write_study

AS = next(figure for figure in FIGURES if figure.title.startswith("AS"))
R_GS = next(figure for figure in FIGURES if figure.title.startswith("R_GS(0) against"))


@pytest.fixture
def study(tmp_path):
    """Two seeds; the second seed's V-scale arm is a step behind."""
    study = load_study(write_study(tmp_path / "s.yaml", seeds=[1, 2]))
    ratio = {"gradient_sink_ratio_early_median": [3.0, 6.0], "gradient_sink_ratio_early_median_null": [3.0, 3.0]}
    sinks = {"attention_sink_mean_null": [0.2, 0.2], **ratio}
    losses = {"baseline_seed1": [4, 3, 2, 1], "V-scale_seed1": [4, 3.5, 2.5, 1.5], "baseline_seed2": [5, 4, 3, 2]}
    for name, values in losses.items():
        write_run(study.out / name, values, attention_sink_mean=[0.2, 0.4], **sinks)
    write_run(study.out / "V-scale_seed2", [5, 4.1, 3.3], attention_sink_mean=[0.2, 0.3], **sinks)
    return study


def test_an_arm_is_compared_with_the_baseline_of_the_same_seed_at_the_same_step(study):
    baseline, v_scale = StudySeries(study).rows()
    assert (baseline.arm, baseline.seeds, baseline.step) == ("baseline", 2, 4)
    assert (v_scale.arm, v_scale.seeds, v_scale.step) == ("V-scale", 2, 3)
    loss = v_scale.cells[0]
    assert loss.value == pytest.approx((1.5 + 3.3) / 2)
    assert (loss.difference, loss.low, loss.high) == pytest.approx((0.4, 0.3, 0.5))  # 0.5 at step 4, 0.3 at step 3
    assert baseline.cells[0].difference is None


def test_a_ratio_is_divided_by_its_own_null(study):
    assert StudySeries(study).by_seed("V-scale", R_GS)[1] == {0: 1.0, 2: 2.0}
    assert StudySeries(study).null("V-scale", AS) == pytest.approx(0.2)


def test_a_mean_over_seeds_stands_only_where_all_seeds_have_come(study):
    by_seed = StudySeries(study).by_seed("V-scale", TRAINING_LOSS)
    assert mean_over_seeds(by_seed) == pytest.approx({1: 4.5, 2: 3.8, 3: 2.9})


def test_a_torn_line_and_a_foreign_one_are_left_out(study):
    with open(study.out / "baseline_seed1" / "metrics.jsonl", "a") as file:
        file.write('"words"\n{"step": "x"}\n{"step": 5, "lo')
    assert list(read_series(study.out / "baseline_seed1")["loss"]) == [1, 2, 3, 4]


def test_states_are_read_from_run_folders(study):
    finished, going, stopped, _ = study.runs
    write_last_checkpoint(finished.folder, 4)
    assert read_progress(finished).state == "finished"
    assert read_progress(stopped).state == "stopped"
    with filelock.FileLock(going.folder / ".lock"):
        assert read_progress(going).state == "running"
    assert read_progress(going).state == "stopped"
    assert read_progress(going, "queued").state == "queued"
    assert read_progress(study.runs[3]).remaining_s == pytest.approx(0.5)


def test_a_diverged_run_is_marked_until_it_has_got_past_it(study):
    run = study.runs[0]
    (run.folder / "events.jsonl").write_text(json.dumps({"event": "diverged", "step": 4}) + "\n")
    assert read_progress(run).state == "diverged"
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "loss": 1.0}\n')
    assert read_progress(run).state == "stopped"


@pytest.mark.parametrize(
    "after", ["", "\nSet TORCHDYNAMO_VERBOSE=1\n[ERROR] [launch.py:259:sigkill_handler] ['python']\n"]
)
def test_of_a_crash_the_exception_is_shown(study, after):
    """And not what a launcher says of it, nor what an earlier launch ended with."""
    run = study.runs[0]
    run.log.parent.mkdir()
    before = f"megasink: starting; 0.1M parameters\nKeyError: before\nmegasink: no room\n{ENDED}76\n"
    began = "megasink: starting; 0.1M parameters\nTraceback\n  raise e\n"
    run.log.write_text(f"{before}{began}torch.OutOfMemoryError: no memory{after}\n{ENDED}1\n")
    assert read_progress(run).note == "torch.OutOfMemoryError: no memory"


def test_of_a_crash_without_an_exception_the_last_line_is_shown(study):
    run = study.runs[0]
    run.log.parent.mkdir()
    run.log.write_text(f"megasink: starting; 0.1M parameters\nSegmentation fault\n{ENDED}-11\n")
    assert read_progress(run).note == "Segmentation fault"


@pytest.mark.parametrize(("code", "state"), [(2, "failed"), (1, "failed"), (75, "stopped"), (76, "stopped")])
def test_how_the_last_launch_ended_is_read_from_the_log(study, code, state):
    run = study.runs[0]
    run.log.parent.mkdir()
    run.log.write_text(f"noise\nmegasink: no room on disk\nmore noise\n{ENDED}{code}\n")
    progress = read_progress(run)
    assert (progress.state, progress.note) == (state, "no room on disk")


def test_the_page_needs_no_network_and_loads_itself_again_only_while_runs_go_on(study):
    progress = [read_progress(run) for run in study.runs]
    write_page(study, progress, live=True)
    page = study.page.read_text()
    assert 'http-equiv="refresh"' in page and not re.search(r'(?:src|href)="(?!data:)', page)
    shown = re.findall(r'<img alt="(.*?) over steps"', page)
    assert shown[:2] == ["Training loss", "Training loss minus baseline"] and "AS, mean" in shown
    assert "Validation loss" not in shown  # nothing was evaluated
    assert "+0.4000 [+0.3000, +0.5000]" in page
    write_page(study, progress, live=False)
    assert "http-equiv" not in study.page.read_text()


def test_a_page_of_nothing_yet(tmp_path):
    study = load_study(write_study(tmp_path / "s.yaml"))
    write_page(study, [read_progress(run) for run in study.runs], live=True)
    assert "No step has been logged yet" in study.page.read_text()
