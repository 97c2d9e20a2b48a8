"""``letta-bridge ctl restore``: in this process, because the bridge has to be stopped."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..commands import parse
from ..commands.backup import RESTORE
from ..commands.show import count
from ..commands.table import CommandError, Table
from ..config import Config
from ..db.database import DatabaseError
from ..db.dump import BackupError
from ..db.restore import RestoreReport, target
from ..db.restore import restore as put_back


async def restore(config: Config, words: list[str], progress: Callable[[str], None]) -> dict[str, Any]:
    """Do it; the reply as the bridge's own replies look."""
    rows = 0

    def written(_: str, number: int) -> None:
        nonlocal rows
        rows += number

    try:
        given = parse.read(RESTORE, parse.of_words(words), Table((RESTORE,)))
        progress("checking the backup and putting it back …")
        report = await put_back(
            target(config), Path(given.values["file"]), replace=given.values["replace"], progress=written
        )
    except (CommandError, BackupError, DatabaseError) as error:
        return {"text": str(error), "data": {"ok": False, "error": str(error)}, "ok": False}
    return {"text": _words(report), "data": {"at": report.at, "schema": report.schema, "rows": report.rows}, "ok": True}


def _words(report: RestoreReport) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.at))
    return (
        f"Restored: {count(sum(report.rows.values()), 'row')} of {when}. Start the bridge with 'letta-bridge run': it "
        f"then reads back what was said in {count(report.rooms, 'room')} since."
    )
