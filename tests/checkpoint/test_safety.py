"""No file that a user hands us can run code: nothing unpickles, nothing builds a shell's command line."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("megasink", "tools", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
FORBIDDEN = {"os.system", "os.popen", "pickle.load", "pickle.loads", "eval", "exec", "subprocess.getoutput"}
NEEDED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def faults(source: str) -> list[str]:
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        given = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
        keyword, value = NEEDED.get(name, (None, None))
        if name in FORBIDDEN or given.get("shell") or (keyword is not None and given.get(keyword) is not value):
            found.append(f"line {call.lineno}: {name}")
    return found


def test_no_source_unpickles_or_uses_a_shell():
    assert {str(path): bad for path in SOURCES if (bad := faults(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p)",
        "subprocess.run(c, shell=True)",
        "os.system(c)",
    ],
)
def test_it_would_be_seen(line):
    assert faults(line)
