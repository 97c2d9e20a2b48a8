"""``letta-bridge register``: make the registration file anew from the configuration."""

import argparse
import os
import sys
from pathlib import Path

from .. import registration
from ..config import Config, load, yamlfile
from ..config.load import env_name
from . import nextsteps
from .exitcodes import Exit
from .options import add_config, add_registration, complain, registration_path

_TOKENS = (("appservice", "as_token"), ("appservice", "hs_token"))
_SHOW = {
    "yaml": lambda config: registration.dump(registration.build(config)),
    "admin-room": registration.admin_room_message,
    "toml": registration.tuwunel_toml,
}


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "register",
        help="write the registration file for the homeserver again",
        description="Writes registration.yaml from config.yaml, readable for its owner only. The homeserver has to "
        "be given the new file afterwards.",
    )
    add_config(parser)
    add_registration(parser)
    parser.add_argument("--force", action="store_true", help="overwrite the registration file if it exists")
    parser.add_argument(
        "--new-tokens",
        action="store_true",
        help="make new tokens and put them into the configuration too (its comments stay)",
    )
    parser.add_argument(
        "--show", choices=sorted(_SHOW), help="write no file: print the registration, secrets included, in this form"
    )
    parser.set_defaults(run=_register)


def _register(options: argparse.Namespace) -> int:
    if options.new_tokens and (named := _named_in_environment()):
        complain(f"{named} is set: the new tokens would not count. Change that one, then register without --new-tokens")
        return Exit.USAGE
    tokens = _fresh_tokens() if options.new_tokens else {}
    config = load(options.config, {**os.environ, **tokens})
    if options.show:
        sys.stdout.write(_SHOW[options.show](config))
        return Exit.OK
    target = registration_path(options)
    if target.exists() and not options.force:
        complain(f"{target} exists; --force overwrites it")
        return Exit.USAGE
    try:
        if options.new_tokens:
            _keep_tokens(config, options.config)
        yamlfile.write_private(target, registration.dump(registration.build(config)), overwrite=options.force)
    except OSError as error:
        complain(f"cannot write {error.filename or target}: {error.strerror or error}")
        return Exit.USAGE
    print(f"Wrote {target}.")
    print(nextsteps.text(config, options.config, target, show_secrets=sys.stdout.isatty()))
    return Exit.OK


def _named_in_environment() -> str | None:
    names = [env_name(path) + suffix for path in _TOKENS for suffix in ("", "_FILE")]
    return next((name for name in names if name in os.environ), None)


def _fresh_tokens() -> dict[str, str]:
    """New tokens as overrides of the environment: they count even where the file has the example's."""
    return {env_name(path): registration.new_token() for path in _TOKENS}


def _keep_tokens(config: Config, path: Path) -> None:
    values = (config.appservice.as_token, config.appservice.hs_token)
    yamlfile.write_private(path, yamlfile.change(path, dict(zip(_TOKENS, values, strict=True))), overwrite=True)
    print(f"Put new tokens into {path}.")
