"""YAML as people write it: read with line numbers, written with comments, changed without losing them."""

import io
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

from .errors import ConfigError, Problem

Lines = dict[tuple[str, ...], int]
"""The line, counted from 1, of every key and list entry (by its index) of a file."""

_WIDTH = 108


def read_mapping(path: Path) -> tuple[dict[str, Any], Lines]:
    """The file's data and the line of each key. Raises :class:`ConfigError` in plain words."""
    text = _read(path)
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        data = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(path, text, error)]) from error
    except (YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError([Problem("", f"cannot be read as YAML: {reason}", str(path))]) from error
    if data is None:
        raise ConfigError([Problem("", "the file is empty", str(path))])
    if not isinstance(data, dict):
        raise ConfigError([Problem("", "expected keys with values (key: value)", str(path))])
    lines: Lines = {}
    _note_lines(node, (), lines)
    return data, lines


def read_value(text: str) -> object:
    """One value written as YAML or JSON. Raises ``ValueError`` with the reason on one line."""
    try:
        value: object = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        reason = error.problem if isinstance(error, MarkedYAMLError) and error.problem else type(error).__name__
        raise ValueError(" ".join(str(reason).split())) from error
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        folder = path.parent
        text = f"there is no such file. 'letta-bridge init --dir {folder}' makes one"
        raise ConfigError([Problem("", text, str(path))]) from error
    except IsADirectoryError as error:
        raise ConfigError([Problem("", "this is a folder, expected a file", str(path))]) from error
    except OSError as error:
        raise ConfigError([Problem("", f"cannot be read: {error.strerror}", str(path))]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("", f"is not UTF-8 text (at byte {error.start})", str(path))]) from error


def _syntax_problem(path: Path, text: str, error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    reason = " ".join(str(error.problem or "not valid YAML").split())
    if mark is None:
        return Problem("", f"not valid YAML: {reason}", str(path))
    rows = text.splitlines()
    row = rows[mark.line].strip() if mark.line < len(rows) else ""
    hint = ""
    if row.startswith(("*", "@")):
        hint = '. Put "*" and Matrix ids in quotes'
    elif "\t" in (rows[mark.line] if mark.line < len(rows) else ""):
        hint = ". Use spaces, not tabs"
    elif "duplicate key" in reason:
        hint = ". Keep only one of them"
        reason = reason.split(" with value")[0]
    where = f"{path}, line {mark.line + 1}, column {mark.column + 1}"
    return Problem("", f"not valid YAML: {reason}{hint}", where)


def _note_lines(node: Node | None, above: tuple[str, ...], lines: Lines) -> None:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            path = (*above, str(key.value))
            lines[path] = key.start_mark.line + 1
            _note_lines(value, path, lines)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            path = (*above, str(index))
            lines[path] = value.start_mark.line + 1
            _note_lines(value, path, lines)


def commented(entries: Mapping[str, Any], comments: Mapping[str, str], level: int = 0) -> CommentedMap:
    """A mapping that is written with a comment above each key; top-level keys stand apart."""
    result = CommentedMap()
    for key, value in entries.items():
        result[_quoted_key(key)] = presentable(value)
        if comment := comments.get(key):
            rows = textwrap.wrap(comment, _WIDTH - 2 * level)
            before = "\n".join(rows) if level else "\n" + "\n".join(rows)
            result.yaml_set_comment_before_after_key(key, before=before, indent=2 * level)
    return result


def presentable(value: Any) -> Any:
    """``value`` as it is to be written: texts that are no plain words in quotes, empty lists as ``[]``."""
    if isinstance(value, CommentedMap):
        return value
    if isinstance(value, str):
        if "\\" in value:
            return SingleQuotedScalarString(value)
        return value if value.replace("_", "").replace("-", "").isalnum() else DoubleQuotedScalarString(value)
    if isinstance(value, (list, tuple)):
        sequence = CommentedSeq(presentable(item) for item in value)
        if not sequence:
            sequence.fa.set_flow_style()
        return sequence
    if isinstance(value, Mapping):
        mapping = CommentedMap((_quoted_key(key), presentable(item)) for key, item in value.items())
        if not mapping:
            mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _quoted_key(key: str) -> str:
    plain = key.replace("_", "").replace("-", "").replace(".", "").isalnum()
    return key if plain else DoubleQuotedScalarString(key)


def _round_trip() -> YAML:
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def dump(mapping: CommentedMap, header: str) -> str:
    """The text of a file: ``header`` as a comment, then ``mapping`` with its comments."""
    out = io.StringIO()
    _round_trip().dump(mapping, out)
    rows = [row for paragraph in header.split("\n") for row in textwrap.wrap(paragraph, _WIDTH)]
    head = "\n".join(f"# {row}" for row in rows)
    return "\n".join(row.rstrip() for row in f"{head}\n{out.getvalue()}".split("\n"))


def change(path: Path, changes: Mapping[tuple[str, ...], str]) -> str:
    """The text of the file with some values replaced; comments and everything else stay."""
    yaml = _round_trip()
    document = yaml.load(_read(path))
    for keys, value in changes.items():
        section = document
        for name in keys[:-1]:
            section = section[name]
        section[keys[-1]] = presentable(value)
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def write_private(path: Path, text: str, *, overwrite: bool) -> None:
    """Write a file that only its owner may read, whole or not at all.

    Raises:
        FileExistsError: it exists and ``overwrite`` is false.
        OSError: it cannot be written; what was there before is untouched.
    """
    path = path.resolve()
    if path.exists() and not overwrite:
        raise FileExistsError(str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
