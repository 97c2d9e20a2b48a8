"""``letta-bridge init``: ask what is needed, write the configuration and the registration."""

import argparse
import getpass
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import registration
from ..config import ConfigError, parse, render, yamlfile
from ..routing.permissions import Level
from . import nextsteps
from .exitcodes import Exit
from .options import CONFIG_NAME, REGISTRATION_NAME, complain

Values = dict[tuple[str, ...], Any]


@dataclass(frozen=True, slots=True)
class Question:
    """Something only the admin knows. ``default`` is taken with --yes; None means that it has to be said."""

    option: str
    text: str
    default: str | None
    secret: bool = False


_QUESTIONS = (
    Question("homeserver_url", "Where does the bridge reach the homeserver?", "http://127.0.0.1:8008"),
    Question("domain", "The homeserver's domain (the part of a Matrix id behind the colon)?", None),
    Question("letta_url", "Where does the bridge reach Letta?", "http://127.0.0.1:8283"),
    Question("letta_key", "Letta's password or API key (empty if it has none)?", "", secret=True),
    Question("admin", "Your own full Matrix id, such as @alice:matrix.org?", None),
)


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "init",
        help="write config.yaml and registration.yaml",
        description="Writes config.yaml and registration.yaml with fresh random tokens, readable for their owner "
        "only, and prints how to register with Tuwunel or Synapse. On a terminal it asks for what is "
        "missing.",
    )
    add = parser.add_argument
    add("--dir", type=Path, default=Path(), metavar="FOLDER", help="where to write (default: the current folder)")
    add("--homeserver-url", metavar="URL", help="where the bridge reaches the homeserver")
    add("--domain", help="the homeserver's domain, the part of a Matrix id behind the colon")
    add("--letta-url", metavar="URL", help="where the bridge reaches Letta's V1 REST API")
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--letta-key", metavar="KEY", help="Letta's password or API key; '' if it has none")
    key.add_argument("--letta-key-file", type=Path, metavar="FILE", help="read the key from this file")
    add("--admin", metavar="MXID", help="your full Matrix id: it gets level admin and is invited to agents' rooms")
    add("--appservice-url", metavar="URL", help="where the homeserver reaches the bridge")
    add("--listen", metavar="HOST:PORT", default="127.0.0.1:29384", help="where to listen (default: %(default)s)")
    add("--database", metavar="URI", help="sqlite:<file> (the default) or postgresql://user:password@host/database")
    add("--registration", type=Path, metavar="FILE", help="where to write the registration (default: in FOLDER)")
    add("--yes", action="store_true", help="ask nothing: take defaults for what is not given, fail where none exists")
    add("--force", action="store_true", help="overwrite files that exist, with new tokens")
    parser.set_defaults(run=_init)


def _init(options: argparse.Namespace) -> int:
    config_path: Path = options.dir / CONFIG_NAME
    registration_path: Path = options.registration or options.dir / REGISTRATION_NAME
    in_the_way = [path for path in (config_path, registration_path) if path.exists()]
    if in_the_way and not options.force:
        names = " and ".join(str(path) for path in in_the_way)
        complain(f"{names} already there; nothing was written. --force overwrites, with new tokens.")
        return Exit.USAGE
    try:
        answers = _answers(options)
        values = _values(options, answers)
        config = parse(_nested(values))
    except _UsageError as error:
        complain(str(error))
        return Exit.USAGE
    except ConfigError as error:
        for problem in error.problems:
            complain(f"{_option_of(problem.key)}: {problem.text}")
        return Exit.USAGE
    try:
        options.dir.mkdir(parents=True, exist_ok=True)
        yamlfile.write_private(config_path, render(values), overwrite=options.force)
        text = registration.dump(registration.build(config))
        yamlfile.write_private(registration_path, text, overwrite=options.force)
    except OSError as error:
        complain(f"cannot write {error.filename or options.dir}: {error.strerror or error}")
        return Exit.USAGE
    print(f"Wrote {config_path} and {registration_path}. Both hold secrets; only you may read them.")
    for warning in config.warnings:
        print(f"Note: {warning}.")
    print(nextsteps.text(config, config_path, registration_path, show_secrets=sys.stdout.isatty()))
    return Exit.OK


class _UsageError(Exception):
    """Something is missing on the command line, and there is nobody to ask."""


def _answers(options: argparse.Namespace) -> dict[str, str]:
    answers = {question.option: getattr(options, question.option) for question in _QUESTIONS}
    if options.letta_key_file:
        answers["letta_key"] = _read_key(options.letta_key_file)
    missing = [question for question in _QUESTIONS if answers[question.option] is None]
    if options.yes:
        answers |= {question.option: question.default for question in missing}
    elif missing and sys.stdin.isatty():
        answers |= {question.option: _ask(question) for question in missing}
    unknown = [question for question in _QUESTIONS if answers[question.option] is None]
    if unknown:
        flags = ", ".join("--" + question.option.replace("_", "-") for question in unknown)
        hint = "" if options.yes else " (--yes takes the usual addresses and no key, where they are not given)"
        raise _UsageError(f"there is no terminal to ask on; give {flags}{hint}")
    return answers


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise _UsageError(f"--letta-key-file: cannot read {path}: {reason}") from error


def _ask(question: Question) -> str:
    read: Callable[[str], str] = getpass.getpass if question.secret else input
    shown = f" [{question.default}]" if question.default else ""
    while True:
        try:
            answer = read(f"{question.text}{shown} ").strip()
        except EOFError as error:
            raise _UsageError("the input ended before every question was answered") from error
        if answer or question.default is not None:
            return answer or str(question.default)
        print("This one has no default; please answer.")


def _values(options: argparse.Namespace, answers: dict[str, str]) -> Values:
    host, port = _listen(options.listen)
    url = options.appservice_url
    if url is None:
        if host not in ("127.0.0.1", "localhost", "::1"):
            raise _UsageError("with --listen on other than loopback, give --appservice-url too")
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    values: Values = {
        ("homeserver", "url"): answers["homeserver_url"],
        ("homeserver", "domain"): answers["domain"],
        ("appservice", "url"): url,
        ("appservice", "host"): host,
        ("appservice", "port"): port,
        ("appservice", "as_token"): registration.new_token(),
        ("appservice", "hs_token"): registration.new_token(),
        ("letta", "url"): answers["letta_url"],
        ("letta", "api_key"): answers["letta_key"] or None,
        ("mirror", "invite"): [answers["admin"]],
        ("permissions",): {answers["admin"]: Level.ADMIN},
    }
    if options.database:
        values["database", "uri"] = options.database
    return values


def _listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise _UsageError(f"--listen: expected HOST:PORT such as 127.0.0.1:29384, found {text!r}")
    return host.strip("[]"), int(port)


def _nested(values: Values) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in values.items():
        section = nested
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = value
    return nested


_OPTION_OF = {
    "homeserver.url": "--homeserver-url",
    "homeserver.domain": "--domain",
    "letta.url": "--letta-url",
    "letta.api_key": "--letta-key",
    "mirror.invite": "--admin",
    "permissions": "--admin",
    "appservice.url": "--appservice-url",
    "appservice.host": "--listen",
    "appservice.port": "--listen",
    "database.uri": "--database",
}


def _option_of(key: str) -> str:
    plain = key.partition(",")[0]
    return _OPTION_OF.get(plain, plain)
