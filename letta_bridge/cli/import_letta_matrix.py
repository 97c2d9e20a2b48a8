"""``letta-bridge import-letta-matrix``: the command of the same name of ``letta-bridge ctl``, under its own name."""

import argparse
from collections.abc import Callable
from pathlib import Path

from .options import add_config

NAME = "import-letta-matrix"


def add_to(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", ctl: Callable[[argparse.Namespace], int]
) -> None:
    """Declare the command.

    Args:
        ctl: gives words to the running bridge.
    """
    parser = commands.add_parser(
        NAME,
        help="adopt the agents of Letta-Matrix",
        description="Adopts the agents of Letta-Matrix, and invites its people to their new rooms. The bridge has to "
        "run. Without --apply it only shows what it would do.",
    )
    add_config(parser)
    parser.add_argument("file", type=Path, metavar="FILE", help="agent_user_mappings.json of Letta-Matrix")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done (the default)")
    parser.add_argument("--apply", action="store_true", help="do it")
    parser.add_argument("--except", dest="leave_out", metavar="IDS", help="accounts that are not invited, by commas")
    parser.add_argument("--json", action="store_true", help="print the answer's data as JSON, for programs")

    def run(options: argparse.Namespace) -> int:
        words = [NAME, str(options.file.absolute())]
        words += [f"--{name}" for name in ("dry-run", "apply") if getattr(options, name.replace("-", "_"))]
        words += ["--except", options.leave_out] if options.leave_out else []
        return ctl(argparse.Namespace(words=words, json=options.json, config=options.config, timeout=None))

    parser.set_defaults(run=run)
