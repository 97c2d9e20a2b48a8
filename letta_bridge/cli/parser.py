"""Which commands there are, and how they end."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from .. import __version__, registration
from ..config import ConfigError, example, reference
from . import check, ctl, import_letta_matrix, init, register, run, smoke
from .exitcodes import MEANING, Exit


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see :class:`~letta_bridge.cli.exitcodes.Exit`)."""
    options = build_parser().parse_args(argv)
    try:
        return int(options.run(options))
    except ConfigError as error:
        _say_config_error(error)
        return Exit.CONFIG
    except BrokenPipeError:
        # whoever read our output has gone; keep the interpreter from complaining while it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except KeyboardInterrupt:
        return 130


def _say_config_error(error: ConfigError) -> None:
    count = len(error.problems)
    head = "the configuration cannot be used" + (f" ({count} problems)" if count > 1 else "")
    print(f"letta-bridge: {head}:", file=sys.stderr)
    for problem in error.problems:
        print(f"  {problem}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    codes = "\n".join(f"  {int(code):2}  {text}" for code, text in MEANING.items())
    parser = argparse.ArgumentParser(
        prog="letta-bridge",
        description="Makes every Letta agent a Matrix user.",
        epilog=f"First steps: letta-bridge init, register with the homeserver, letta-bridge check, "
        f"letta-bridge run.\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"letta-bridge {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    init.add_to(commands)
    run.add_to(commands)
    check.add_to(commands)
    ctl.add_to(commands)
    import_letta_matrix.add_to(commands, ctl.give)
    smoke.add_to(commands)
    register.add_to(commands)
    _add_printer(commands, "example-config", "print config.example.yaml", example)
    _add_printer(commands, "example-registration", "print registration.yaml.example", registration.example)
    _add_printer(commands, "config-reference", "print docs/configuration.md", reference)
    _add_printer(commands, "commands-reference", "print docs/commands.md", _commands)
    return parser


def _commands() -> str:
    from ..commands.groups import TABLE  # slow to import, and most commands need none of it
    from ..commands.page import page

    return page(TABLE)


def _add_printer(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, make: Callable[[], str]
) -> None:
    def show(_: argparse.Namespace) -> int:
        sys.stdout.write(make())
        return Exit.OK

    commands.add_parser(name, help=text, description=text.capitalize() + ".").set_defaults(run=show)
