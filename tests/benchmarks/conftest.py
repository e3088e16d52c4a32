"""benchmarks/ is no package: its programs find `throughput` beside them, as these tests must."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
