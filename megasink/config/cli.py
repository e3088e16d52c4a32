"""Command lines made from dataclasses: defaults < `--config run.yaml` < flags, every mistake one line."""

import contextlib
import dataclasses
import functools
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from megasink.errors import UserError, is_speaking_rank

Config = TypeVar("Config")


class NoKeyTwice:
    """For a loader of PyYAML, which takes the last of equal keys and drops the others without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for at, key in enumerate(keys) if key in keys[:at]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(problem=f"{twice} is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


class _Loader(NoKeyTwice, yaml.SafeLoader):
    """YAML 1.2's booleans: `v_scale: off` is the word off, not false. (Strings still become booleans where wanted.)"""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")


def parse_cli(cls: type[Config], argv: list[str], description: str | None = None, usage: str | None = None) -> Config:
    """Parse `argv` (without the program's name) into the dataclass `cls`.

    Flags are the field names with hyphens, without a section's prefix. Where `cls` has sections (fields that are
    dataclasses) or not, `--config FILE.yaml` gives values that flags then override; of several files each overrides
    those before it.

    Args:
        usage: how --help says the command is called; default: as it was.

    Raises:
        UserError: unknown flag or YAML key, wrong type, missing value, unreadable YAML.
        SystemExit: after `--help` (exit code 0).
    """
    paths, argv = _take_config_flags(argv)
    default = load_yaml(cls, *paths) if paths else None
    said = io.StringIO()
    help_stream = sys.stdout if is_speaking_rank() else io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(help_stream):
            return tyro.cli(
                cls,
                args=argv,
                default=default,
                description=description or cls.__doc__,
                prog=usage or _own_name(),
                config=(tyro.conf.OmitArgPrefixes,),
                registry=_help_texts(cls),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UserError(_one_line(said.getvalue())) from None


def _help_texts(command: type) -> ConstructorRegistry:
    """How tyro is to describe dataclasses; `command` is the outermost one, which lists --config."""
    registry = ConstructorRegistry()
    entered = object()

    @registry.struct_rule
    def describe(info: StructTypeInfo) -> StructConstructorSpec | None:
        if entered in info.markers or not dataclasses.is_dataclass(info.type):
            return None
        # tyro's own rules, which are asked after this one: the mark has it pass
        spec = ConstructorRegistry.get_struct_spec(dataclasses.replace(info, markers=(*info.markers, entered)))
        described = tuple(
            dataclasses.replace(
                field,
                type=Annotated[field.type, tyro.conf.arg(help_behavior_hint=_default_hint)],
                helptext=functools.partial(_flowing, field.helptext),
            )
            for field in spec.fields
        )
        if info.type is not command:
            return dataclasses.replace(spec, fields=described)
        return StructConstructorSpec(lambda config, **values: spec.instantiate(**values), (_CONFIG_FLAG, *described))

    return registry


def _own_name() -> str:
    """`python -m megasink.train`, or a script's path; sys.argv[0] has the path of a module too."""
    module = sys.modules["__main__"].__spec__
    return sys.argv[0] if module is None else f"python -m {module.name.removesuffix('.__main__')}"


def _default_hint(default: str) -> str:
    """Where there is no default, or none that can be shown, the text says what happens without the flag."""
    return "" if default in ("", "''", "None") else f"(default: {default})"


def _flowing(text: Callable[[], str | None]) -> str | None:
    """tyro keeps the line breaks of a docstring; the terminal's width is another."""
    found = text()
    return found and " ".join(found.split())


# Only for --help: parse_cli has taken the flags and read the files before tyro parses.
_CONFIG_FLAG = StructFieldSpec(
    name="config",
    type=Annotated[str, tyro.conf.arg(metavar="FILE.yaml", help_behavior_hint="")],
    default="",
    helptext="Read settings from a file. Later files win over earlier ones, flags over files.",
)


def load_yaml(cls: type[Config], *paths: str | Path) -> Config:
    """Read YAML files, each over those before it, into the dataclass `cls`.

    Raises:
        UserError: unreadable file; unknown key or wrong type, with the file's and the key's name.
    """
    data: dict[str, Any] = {}
    for path in paths:
        data = _laid_over(data, _read_yaml(path))
        config = from_dict(cls, data, f"--config {path}")
    return config


def _read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of no calendar is a ValueError
        raise UserError(f"--config {path}: not YAML ({error})") from None
    if data is not None and not isinstance(data, dict):
        raise UserError(f"--config {path}: expected `key: value` lines at the top, found {type(data).__name__}")
    return data or {}


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both_dicts = {
        key for key in below.keys() & above.keys() if isinstance(below[key], dict) and isinstance(above[key], dict)
    }
    return below | above | {key: _laid_over(below[key], above[key]) for key in both_dicts}


def from_dict(cls: type[Config], data: dict[str, Any], where: str) -> Config:
    """Build `cls` from nested dicts with type checks; `where` begins the error line."""
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            raise UserError(f"{where}: unknown key {key}; {_known_keys(cls, first['loc'][:-1])}") from None
        message = first["msg"].replace("valid tuple", "list in brackets")
        got = "" if first["type"] == "missing" else f" (got {first['input']!r:.100})"
        raise UserError(f"{where}: {key}: {message}{got}") from None


def to_yaml(config: Any) -> str:
    """The YAML text that `--config` reads back to an equal dataclass."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _take_config_flags(argv: list[str]) -> tuple[list[str], list[str]]:
    paths, rest = [], []
    words = iter(argv)
    for word in words:
        if word == "--config":
            paths.append(next(words, None))
            if paths[-1] is None:
                raise UserError("--config needs the path of a YAML file")
        elif word.startswith("--config="):
            paths.append(word.removeprefix("--config="))
        else:
            rest.append(word)
    return paths, rest


def _known_keys(cls: Any, loc: tuple) -> str:
    for part in loc:
        cls = next(field.type for field in dataclasses.fields(cls) if field.name == part)
    return "known here: " + ", ".join(field.name for field in dataclasses.fields(cls))


def _one_line(boxed: str) -> str:
    """tyro draws a titled box with ruled sections; keep the first (what is wrong) and the names it suggests."""
    lines = [line.strip("│ ").strip() for line in boxed.splitlines() if not line.startswith(("╭", "╰"))]
    sections: list[list[str]] = [[]]
    for line in lines:
        if line and set(line) <= {"─", "-"}:
            sections.append([])
        elif line:
            sections[-1].append(line)
    if not boxed.lstrip().startswith("╭") and len(sections) > 1:
        sections = sections[1:]  # without a terminal the title is a ruled section of its own
    hints = [line for section in sections[1:] if section and section[0].startswith("Perhaps") for line in section[1:]]
    names = [line.split()[0].rstrip(",") for line in hints if line.startswith("--")]
    advice = f"did you mean {' or '.join(names)}?" if names else "see --help"
    return f"{' '.join(sections[0]).rstrip('.')}; {advice}"
