"""Who may import whom. Layers look down only, and heavy libraries stay where they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"errors"},
    {"config"},
    {"parallel"},
    {"model"},
    {"checkpoint", "stats", "data"},
    {"tokenize"},  # writes the files that data reads
    {"plan"},
    {"train", "analysis", "tools"},
    {"preflight"},  # measures the nodes that train will use
    {"study"},  # starts trainings and compares them
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
ONLY_IN = {
    "deepspeed": {"train", "checkpoint"},
    "torch.distributed": {"parallel", "checkpoint", "stats", "plan", "train", "preflight"},
    "torch.cuda": {"parallel", "checkpoint", "stats", "train", "preflight"},
    "wandb": {"train"},
    "matplotlib": {"analysis", "study", "train"},
}
NEVER_IN = {"torch": {"tokenize", "errors", "config"}}


def part_of(path: Path) -> str:
    """megasink/model/rope.py -> model; megasink/errors.py -> errors; tools/x.py -> tools."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "tools" else parts[1]


def imports_of(source: str) -> set[str]:
    """Every module a file imports anywhere, in functions too; `from a import b` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def violations(part: str, modules: set[str]) -> list[str]:
    """What `part` imports although it may not."""
    bad = []
    for module in modules:
        if module.startswith("megasink."):
            other = module.split(".")[1]
            if other != part and HEIGHT.get(other, len(LAYERS)) >= HEIGHT[part] and part != "tools":
                bad.append(f"{part} must not import {module}")
        bad += [
            f"only {homes} import {library}"
            for library, homes in ONLY_IN.items()
            if is_within(module, library) and part not in homes
        ]
        bad += [
            f"{part} must not import {library}"
            for library, parts in NEVER_IN.items()
            if is_within(module, library) and part in parts
        ]
    return bad


SOURCES = sorted(path for folder in ("megasink", "tools") for path in (ROOT / folder).rglob("*.py"))
SOURCES.remove(ROOT / "megasink" / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_look_down(path):
    assert violations(part_of(path), imports_of(path.read_text())) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("model", "from megasink import train"),
        ("stats", "from megasink.data import indexed"),
        ("analysis", "def f():\n    import deepspeed.comm"),
        ("data", "from torch import distributed"),
        ("tokenize", "import torch"),
    ],
)
def test_the_rule_catches(part, source):
    assert violations(part, imports_of(source))


def test_data_and_tokenize_start_light():
    """Tokenizing text must not load the training stack: it takes seconds and fails where that stack does not run."""
    code = (
        "import sys, megasink.tokenize, megasink.data; "
        "print([m for m in ('deepspeed', 'transformers', 'wandb') if m in sys.modules], "
        "'torch' in sys.modules and sys.modules['torch'].cuda.is_initialized())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[] False", result.stdout + result.stderr


def test_tokenize_starts_without_torch():
    code = "import sys, megasink.tokenize; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stdout + result.stderr


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_ctrl_c_while_a_tool_imports_is_no_traceback(tool):
    program = (
        "import runpy, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('numpy', 'torch'): raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    flags = {"generate": ["--checkpoint", "a", "--prompt", "b"]}.get(tool.stem, [])
    ended = subprocess.run([sys.executable, "-c", program, tool, *flags], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "")
