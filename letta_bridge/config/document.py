"""The configuration as documents: the commented file, its example, and the reference page."""

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any

from ruamel.yaml.comments import CommentedMap

from . import yamlfile
from .kinds import Template
from .load import ENV_PREFIX, env_name
from .schema import Config, Key, Section, leaves, members

_HEADER = (
    "Configuration of letta-bridge.\n"
    "'letta-bridge init' writes this file; 'letta-bridge check' tells what is wrong with it.\n"
    f"Every key can be set by the environment: {ENV_PREFIX}SECTION__KEY. Secrets can be read from a file: "
    f"{ENV_PREFIX}SECTION__KEY_FILE."
)
_EXAMPLE = "\nThis is an example: the bridge refuses to start while its placeholders stand."

Values = Mapping[tuple[str, ...], Any]


def render(values: Values) -> str:
    """The text of a configuration file: ``values``, defaults for the rest, a comment above each key."""
    chosen = {path: values.get(path, key.example if key.required else key.default) for path, key in leaves()}
    return yamlfile.dump(_mapping(Config, (), chosen), _HEADER)


def example() -> str:
    """The text of ``config.example.yaml``."""
    chosen = {path: key.example for path, key in leaves()}
    return yamlfile.dump(_mapping(Config, (), chosen), _HEADER + _EXAMPLE)


def _mapping(cls: type, above: tuple[str, ...], chosen: Values) -> CommentedMap:
    entries: dict[str, Any] = {}
    comments: dict[str, str] = {}
    for name, member in members(cls):
        path = (*above, name)
        comments[name] = member.comment
        if isinstance(member, Section):
            entries[name] = _mapping(member.cls, path, chosen)
        else:
            entries[name] = _plain(chosen[path])
    return yamlfile.commented(entries, comments, len(above))


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, Template):
        return {f.name: _plain(item) for f in dataclasses.fields(value) if (item := getattr(value, f.name))}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


_PAGE = f"""# Configuration

One YAML file, `config.yaml`, written by `letta-bridge init` with a comment above every key. This page is
made from the same declaration as that file (`letta-bridge config-reference`).

* Every key can be set by an environment variable, which wins over the file: `{ENV_PREFIX}` and the key's
  path in capital letters, joined by two underscores. Lists and maps are written as YAML or JSON:
  `{ENV_PREFIX}PERMISSIONS='{{"@alice:matrix.org": admin}}'`.
* A secret can be read from a file: the same name with `_FILE` behind it holds the file's path.
* Unknown keys and unknown variables with that prefix are errors, as are wrong types. `letta-bridge check`
  names each one with its line and what is expected.
* Values that were copied from `config.example.yaml` and mean nothing here are refused.
* After a change restart the bridge. After a change under `appservice`, run `letta-bridge register --force`
  and register the new file with the homeserver too.
"""


def reference() -> str:
    """The text of ``docs/configuration.md``."""
    parts = [_PAGE]
    for name, member in members(Config):
        if isinstance(member, Section):
            parts.append(_section_page((name,), member))
        else:
            parts.append(f"## `{name}`\n\n" + _key_page((name,), member))
    return "\n".join(parts)


def _section_page(path: tuple[str, ...], section: Section) -> str:
    parts = [f"## `{'.'.join(path)}`\n\n{section.comment}\n"]
    for name, member in members(section.cls):
        if isinstance(member, Section):
            parts.append(_section_page((*path, name), member))
        else:
            parts.append(f"### `{'.'.join((*path, name))}`\n\n" + _key_page((*path, name), member))
    return "\n".join(parts)


def _key_page(path: tuple[str, ...], key: Key) -> str:
    default = "none, it has to be set" if key.required else f"`{_inline(key.default)}`"
    variable = f"`{env_name(path)}`" + (f" or `{env_name(path)}_FILE`" if key.secret else "")
    secret = " It is a secret." if key.secret else ""
    return f"{key.comment}{secret}\n\n* Expected: {key.kind.expects}\n* Default: {default}\n* Environment: {variable}\n"


def _inline(value: Any) -> str:
    plain = _plain(value)
    if plain is None:
        return "null"
    if isinstance(plain, bool):
        return str(plain).lower()
    if isinstance(plain, (tuple, list)):
        return "[" + ", ".join(f'"{item}"' for item in plain) + "]"
    if isinstance(plain, dict):
        return "{}"
    if isinstance(plain, float) and plain.is_integer():
        return str(int(plain))
    return str(plain)
