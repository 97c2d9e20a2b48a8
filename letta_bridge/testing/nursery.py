"""Bridge processes in quick succession: ``python -m letta_bridge.testing.nursery``.

Imports the bridge once and forks a process for every line of its standard input, a JSON object

    {"argv": ["run", "-c", "config.yaml"], "cwd": FOLDER, "log": FILE, "orders": FILE, "mark": FILE}

and writes the new process's id as a line to its standard output. A process that is killed is killed as any other; only
the second that Python needs to import everything is saved. ``orders`` and ``mark`` are those of
:class:`letta_bridge.testing.faultpoints.Ordered`. When the input ends, or the nursery dies, its processes die with it.
"""

import ctypes
import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import letta_bridge.bridge as _imported_for_all
from letta_bridge import faults
from letta_bridge.__main__ import main as letta_bridge
from letta_bridge.testing.faultpoints import Ordered

_PR_SET_PDEATHSIG = 1


def _live(order: dict[str, Any], parent: int) -> NoReturn:
    """The life of a forked process."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that was said
            os._exit(1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.chdir(order["cwd"])
        random.seed()
        faults.hook = Ordered(Path(order["orders"]), Path(order["mark"]))
        code = letta_bridge(order["argv"])
    except BaseException:  # noqa: BLE001  the boundary of a forked process: nobody above it may go on
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> int:
    """Fork until the input ends."""
    assert _imported_for_all
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to be waited for
    here = os.getpid()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _live(json.loads(line), here)
        print(pid, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
