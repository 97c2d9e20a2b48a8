"""Child processes: nothing stays behind, whatever happens to the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from letta_bridge.testing.stack.process import ChildProcess, StackError, child_environment

_FOREVER = [sys.executable, "-c", "import time\nprint('up')\nwhile True: time.sleep(1)"]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


async def test_a_child_that_ignores_the_polite_signal_is_killed_with_its_own_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
inner = subprocess.Popen({_FOREVER!r})
open({str(pids)!r} + ".part", "w").write(f"{{os.getpid()}} {{inner.pid}}")
os.rename({str(pids)!r} + ".part", {str(pids)!r})
time.sleep(600)
"""
    child = ChildProcess("a child", [sys.executable, "-c", program], log=tmp_path / "log")
    child.start()
    await child.wait_ready(pids.exists, 20)
    outer, inner = map(int, pids.read_text().split())
    assert outer == child.pid
    await child.stop(grace=0.2)
    assert child.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while _alive(inner):
        assert time.monotonic() < deadline
    await child.stop()


async def test_a_child_that_ends_early_is_reported_with_its_output(tmp_path: Path) -> None:
    child = ChildProcess("a child", [sys.executable, "-c", "raise SystemExit('no config')"], log=tmp_path / "log")
    child.start()
    with pytest.raises(StackError, match=r"a child ended with status 1(.|\n)*no config"):
        await child.wait_ready(lambda: False, 20)
    child.kill()


async def test_a_program_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    child = ChildProcess("a child", [tmp_path / "nothing"], log=tmp_path / "log")
    with pytest.raises(StackError):
        child.start()
        await child.wait_ready(lambda: False, 20)


@pytest.mark.skipif(not Path("/usr/bin/setpriv").exists(), reason="the kernel is told by setpriv of util-linux")
def test_a_child_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio, time
from pathlib import Path
from letta_bridge.testing.stack.process import ChildProcess
log = Path({str(tmp_path / "log")!r})
child = ChildProcess("a child", {_FOREVER!r}, log=log)
child.start()
asyncio.run(child.wait_ready(lambda: "up" in log.read_text(), 20))
print(child.pid, flush=True)
time.sleep(600)
"""
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=child_environment({"PYTHONPATH": root})
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert _alive(pid)
        parent.kill()
    deadline = time.monotonic() + 10
    while _alive(pid):
        assert time.monotonic() < deadline
    assert os.getpid() != pid
