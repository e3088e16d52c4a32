"""What a file of --deepspeed-config may hold."""

import pytest

from megasink.config import RunConfig
from megasink.config.deepspeed import deepspeed_config
from megasink.config.run import ParallelConfig
from megasink.errors import UserError


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "not JSON"),
        ("[]", "must be JSON objects"),
        ('{"zero_optimization": true}', "must be JSON objects"),
        ('{"zero_optimization": {"stage": 1}, "bf16": {"enabled": true}}', "bf16: set by megasink's own flags"),
        ('{"zero_optimization": {"stage": 1}, "flops_profiler": {"enabled": true}}', "flops_profiler: --profile"),
        ('{"zero_optimization": {"stage": 1}, "wall_clock_breakdown": true}', "wall_clock_breakdown: --profile says"),
        ('{"zero_optimization": {"stage": 2}}', "sets ZeRO stage 2, the run asks for --zero-stage 1"),
    ],
)
def test_what_cannot_be_meant_names_the_file_and_the_fix(text, says, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as error:
        deepspeed_config(RunConfig(parallel=ParallelConfig(deepspeed_config=str(path))), replicas=1)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_settings_that_are_off_anyway_may_stand_there(tmp_path):
    """As in many published files."""
    path = tmp_path / "settings.json"
    off = '"wall_clock_breakdown": false, "flops_profiler": {"enabled": false}'
    path.write_text(f'{{"zero_optimization": {{"stage": 1}}, {off}}}')
    assert deepspeed_config(RunConfig(parallel=ParallelConfig(deepspeed_config=str(path))), replicas=1)
