"""From a YAML file and the environment to a validated :class:`Config`."""

import dataclasses
import difflib
import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..routing.permissions import Level
from .errors import ConfigError, Problem
from .kinds import Fault, WrongValueError
from .schema import Config, Key, Section, leaves, members
from .yamlfile import Lines, read_mapping, read_value

ENV_PREFIX = "LETTA_BRIDGE__"
_FILE_SUFFIX = "_FILE"
_ENV_WHERE = "environment variable"
_SHOWN = 60

Path_ = tuple[str, ...]


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read, override and validate the configuration.

    Args:
        path: the YAML file. Relative paths in it start from its folder.
        environ: ``LETTA_BRIDGE__SECTION__KEY`` overrides a key (lists and maps as YAML);
            ``LETTA_BRIDGE__SECTION__KEY_FILE`` names a file that holds a secret.

    Raises:
        ConfigError: with everything that is wrong, each naming the key and what is expected.
    """
    data, lines = read_mapping(path)
    config = parse(data, environ, lines=lines, file_name=str(path))
    warnings = [*config.warnings, *_mode_warnings(path, data)]
    return dataclasses.replace(config, path=path, base=path.absolute().parent, warnings=tuple(warnings))


def parse(
    data: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    *,
    lines: Lines | None = None,
    file_name: str = "",
    base: Path = Path(),
) -> Config:
    """Validate plain data, as it stands in the file, into a :class:`Config`. Raises :class:`ConfigError`."""
    reader = _Reader(file_name, lines or {})
    reader.take_file(data, Config, ())
    reader.take_environment(environ or {})
    values = {path: reader.value(path, key) for path, key in leaves()}
    if not reader.problems:
        reader.cross_check(values)
    if reader.problems:
        raise ConfigError(reader.problems)
    config: Config = _build(Config, (), values)
    return dataclasses.replace(config, base=base, warnings=tuple(_warnings(config)))


@dataclass(frozen=True, slots=True)
class _Found:
    """A raw value and where it stands."""

    raw: object
    where: str


class _Reader:
    """Collects raw values and every problem on the way."""

    def __init__(self, file_name: str, lines: Lines) -> None:
        self._file_name = file_name
        self._lines = lines
        self._found: dict[Path_, _Found] = {}
        self._keys = dict(leaves())
        self.problems: list[Problem] = []

    def take_file(self, data: Mapping[str, Any], section: type, above: Path_) -> None:
        """Find the keys of a section in the file's data, and the unknown ones."""
        known = dict(members(section))
        for name, raw in data.items():
            path = (*above, str(name))
            member = known.get(str(name))
            if member is None:
                hint = self._suggestion(str(name), list(known))
                self._problem(path, f"unknown key{hint}", self._line(path))
            elif isinstance(member, Key):
                self._found[path] = _Found(raw, self._line(path))
            elif isinstance(raw, Mapping):
                self.take_file(raw, member.cls, path)
            elif raw is not None:
                self._problem(path, f"expected keys below it, found {_show(raw)}", self._line(path))

    def take_environment(self, environ: Mapping[str, str]) -> None:
        """Let the environment override the file."""
        names = {env_name(path): path for path in self._keys}
        for name in sorted(name for name in environ if name.startswith(ENV_PREFIX)):
            where = f"{_ENV_WHERE} {name}"
            if path := names.get(name):
                self._override(path, environ[name], where)
            elif (path := names.get(name.removesuffix(_FILE_SUFFIX))) and self._keys[path].secret:
                self._override_from_file(path, environ, name, where)
            else:
                self.problems.append(Problem("", "unknown key" + self._env_suggestion(name, names), where))

    def _override(self, path: Path_, text: str, where: str) -> None:
        kind = self._keys[path].kind
        if kind.literal:
            self._found[path] = _Found(text, where)
            return
        try:
            self._found[path] = _Found(read_value(text), where)
        except ValueError as error:
            self._problem(path, f"expected {kind.expects}, written as YAML: {error}", where)

    def _override_from_file(self, path: Path_, environ: Mapping[str, str], name: str, where: str) -> None:
        plain = name.removesuffix(_FILE_SUFFIX)
        if plain in environ:
            self._problem(path, f"{plain} and {name} are both set; keep one of them", where)
            return
        try:
            text = Path(environ[name]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            self._problem(path, f"cannot read the file {environ[name]}: {reason}", where)
            return
        self._found[path] = _Found(text, where)

    def value(self, path: Path_, key: Key) -> Any:
        """The validated value of a key. After a problem its worth is meaningless."""
        found = self._found.get(path)
        if found is None:
            if key.required and not self._hidden(path):
                self._problem(path, f"missing; expected {key.kind.expects}", self._file_name)
            return key.default
        try:
            return key.kind.parse(found.raw)
        except WrongValueError as error:
            for fault in error.faults:
                self._fault(path, key, found, fault)
            return None

    def _hidden(self, path: Path_) -> bool:
        """Whether a problem with the section that holds the key is already told."""
        dotted = ".".join(path)
        return any(problem.key and dotted.startswith(problem.key + ".") for problem in self.problems)

    def _fault(self, path: Path_, key: Key, found: _Found, fault: Fault) -> None:
        shown = "a value that is not shown" if key.secret and fault.found is not None else _show(fault.found)
        inner = (*path, *(str(part) for part in fault.at))
        in_file = not found.where.startswith(_ENV_WHERE) and inner in self._lines
        where = self._line(inner) if in_file else found.where
        name = ".".join(path)
        for part in fault.at:
            name += f", entry {part + 1}" if isinstance(part, int) else f', entry "{part}"'
        self.problems.append(Problem(name, f"expected {fault.expected}, found {shown}", where))

    def cross_check(self, values: Mapping[Path_, Any]) -> None:
        """What only two keys together can say."""
        if values["appservice", "as_token"] == values["appservice", "hs_token"]:
            self._problem(("appservice", "hs_token"), "expected another token than as_token, found the same")
        if values["appservice", "bot_localpart"].startswith(values["appservice", "puppet_prefix"]):
            self._problem(("appservice", "bot_localpart"), "expected a name that does not begin with puppet_prefix")
        if values["database", "beat_s"] * 2 >= values["database", "lease_s"]:
            self._problem(("database", "beat_s"), "expected less than half of database.lease_s")
        if values["metrics", "enabled"] and values["metrics", "port"] == values["appservice", "port"]:
            self._problem(("metrics", "port"), "expected another port than appservice.port")

    def _problem(self, path: Path_, text: str, where: str | None = None) -> None:
        if where is None:
            where = self._found[path].where if path in self._found else self._file_name
        self.problems.append(Problem(".".join(path), text, where))

    def _line(self, path: Path_) -> str:
        line = self._lines.get(path)
        return f"{self._file_name}, line {line}" if line else self._file_name

    def _suggestion(self, name: str, siblings: list[str]) -> str:
        if close := difflib.get_close_matches(name, siblings, 1):
            return f"; did you mean {close[0]}?"
        by_name = {path[-1]: ".".join(path) for path in self._keys}
        if close := difflib.get_close_matches(name, list(by_name), 1, cutoff=0.8):
            return f"; did you mean {by_name[close[0]]}?"
        return "; expected one of " + ", ".join(siblings)

    def _env_suggestion(self, name: str, names: Mapping[str, Path_]) -> str:
        plain = names.get(name.removesuffix(_FILE_SUFFIX))
        if plain and name.endswith(_FILE_SUFFIX):
            return f"; {_FILE_SUFFIX} is for secrets only, use {name.removesuffix(_FILE_SUFFIX)}"
        secret = [env_name(path) + _FILE_SUFFIX for path, key in self._keys.items() if key.secret]
        close = difflib.get_close_matches(name, [*names, *secret], 1)
        return f"; did you mean {close[0]}?" if close else f"; names are {ENV_PREFIX}SECTION__KEY"


def env_name(path: Path_) -> str:
    """The environment variable that overrides a key."""
    return ENV_PREFIX + "__".join(path).upper()


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    text = {True: "true", False: "false"}.get(value, "") if isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _build(cls: type, above: Path_, values: Mapping[Path_, Any]) -> Any:
    arguments = {
        name: _build(member.cls, (*above, name), values) if isinstance(member, Section) else values[(*above, name)]
        for name, member in members(cls)
    }
    return cls(**arguments)


_SHORT_TOKEN = 24


def _warnings(config: Config) -> list[str]:
    found = []
    if not any(level > Level.NONE for level in config.permissions.values()):
        found.append("permissions lets nobody talk to any agent; name at least one person or domain there")
    if "@*:*" in config.ignored_senders:
        found.append('ignored_senders has "@*:*": only people named by their full Matrix id can talk')
    if config.appservice.ping_interval > 60:
        found.append("appservice.ping_interval is above 60 seconds: Tuwunel repeats what failed that much later")
    if min(len(config.appservice.as_token), len(config.appservice.hs_token)) < _SHORT_TOKEN:
        found.append("appservice.as_token or hs_token is short; 'letta-bridge register --new-tokens' makes good ones")
    reached = urlsplit(config.appservice.url)
    if _loopback(reached.hostname or "") and reached.port not in (None, config.appservice.port):
        found.append(
            f"appservice.url says port {reached.port} on this machine, but the bridge listens on "
            f"port {config.appservice.port}"
        )
    elif not _loopback(reached.hostname or "") and _loopback(config.appservice.host):
        found.append(
            f"appservice.url names another machine ({reached.hostname}), but appservice.host is loopback: "
            "only a proxy on this machine can reach the bridge"
        )
    return found


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _mode_warnings(path: Path, data: Mapping[str, Any]) -> list[str]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077 and _holds_secret(data):
        return [f"{path} holds secrets and others may read it (mode {mode:04o}); run: chmod 600 {path}"]
    return []


def _holds_secret(data: Mapping[str, Any]) -> bool:
    for path, key in leaves():
        section = data.get(path[0]) if key.secret else None
        value = section.get(path[-1]) if isinstance(section, Mapping) else None
        if isinstance(value, str) and value and not value.startswith("sqlite:"):
            return True
    return False
