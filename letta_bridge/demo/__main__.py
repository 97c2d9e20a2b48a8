"""``python -m letta_bridge.demo``: install what is missing, start everything, talk, stop everything."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import signal
import sys
import traceback
from pathlib import Path

from letta_bridge.demo import world
from letta_bridge.demo.chat import Chat
from letta_bridge.demo.conversation import Conversation
from letta_bridge.testing.person import NotSeen
from letta_bridge.testing.stack.install import cache_dir, ensure, missing
from letta_bridge.testing.stack.process import StackError, log_tail
from letta_bridge.testing.stack.progress import Progress

_PARTS = ("synapse", "postgres", "letta")


def main() -> int:
    """0 when everything worked; 1 with the reason, and 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="letta_bridge.demo", description="the bridge, a homeserver and a real Letta")
    parser.add_argument("--script", action="store_true", help="hold the scripted conversation, also on a terminal")
    chat = sys.stdin.isatty() and sys.stdout.isatty() and not parser.parse_args().script
    folder = cache_dir() / "demo"
    try:
        progress = Progress(len(missing(*_PARTS)) + world.STEPS)
        ensure(*_PARTS, progress=progress)
        with (cache_dir() / "demo.lock").open("w") as lock:
            _claim(lock.fileno())
            figures = asyncio.run(_demo(folder, progress, chat))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\ninterrupted; everything that the demo started is stopped")
        return 130
    except Exception as error:  # noqa: BLE001  the demo's outermost boundary: whatever went wrong is told, with the logs
        _report(error, folder, chat)
        return 1
    print("Everything is stopped." if chat else json.dumps(figures))
    return 0


def _claim(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StackError("another demo runs in this folder; end it first") from None


async def _demo(folder: Path, progress: Progress, chat: bool) -> dict[str, object]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with world.running(folder, progress) as running:
        if chat:
            await Chat(running).run()
            print("\nstopping …", flush=True)
            return {}
        print(f"\nThe model behind Letta: {running.provider.title} ({running.model}).")
        if running.provider.scripted:
            print("It is no language model, it answers by a script. For a real one set OPENAI_API_KEY (and")
            print("OPENAI_API_BASE) or OLLAMA_BASE_URL.")
        print(f"The conversation, as {running.account.user_id} sees it:\n", flush=True)
        conversation = Conversation(running)
        await conversation.hold()
        print("\nstopping …", flush=True)
        return conversation.figures()


def _report(error: BaseException, folder: Path, chat: bool) -> None:
    while isinstance(error, BaseExceptionGroup):  # parts are started side by side; the first failure ends the others
        error = error.exceptions[0]
    print(f"\nThe demo failed.\n{error}", flush=True)
    if not isinstance(error, StackError | NotSeen):
        traceback.print_exception(error, file=sys.stdout)
    for path in world.logs(folder):
        if str(path) not in str(error):  # some errors carry the end of their log
            print(log_tail(path))
    if not chat:
        print(json.dumps({"ok": False, "error": str(error).partition("\n")[0] or type(error).__name__}))


if __name__ == "__main__":
    sys.exit(main())
