"""The command line: init, run, check, register."""

from .parser import main

__all__ = ["main"]
