"""``python -m letta_bridge`` and the ``letta-bridge`` command."""

import sys

from .cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
