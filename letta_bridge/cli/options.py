"""Options and small helpers that several commands share."""

import argparse
import sys
from pathlib import Path

from ..config import Config, load

CONFIG_NAME = "config.yaml"
REGISTRATION_NAME = "registration.yaml"


def add_config(parser: argparse.ArgumentParser) -> None:
    """``-c``: which configuration is meant."""
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        default=Path(CONFIG_NAME),
        metavar="FILE",
        help=f"the configuration file (default: {CONFIG_NAME} in the current folder)",
    )


def add_registration(parser: argparse.ArgumentParser) -> None:
    """``-r``: which registration file is meant."""
    parser.add_argument(
        "-r",
        "--registration",
        type=Path,
        metavar="FILE",
        help=f"the registration file (default: {REGISTRATION_NAME} beside the configuration)",
    )


def registration_path(options: argparse.Namespace) -> Path:
    """The registration file that the options mean."""
    given: Path | None = options.registration
    folder: Path = options.config.parent
    return given or folder / REGISTRATION_NAME


def load_config(options: argparse.Namespace) -> Config:
    """The configuration that the options mean. Raises :class:`~letta_bridge.config.ConfigError`."""
    path: Path = options.config
    return load(path)


def complain(text: str) -> None:
    """A line to standard error."""
    print(f"letta-bridge: {text}", file=sys.stderr)
