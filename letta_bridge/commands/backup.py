"""``backup`` and ``restore``: the database in one file."""

from pathlib import Path

from ..db.backup import backup
from ..db.dump import BackupError
from ..db.restore import whose
from .call import Call
from .show import count
from .table import Arg, Command, CommandError, Need, Option, Reply

GROUP = "Data"


async def _backup(call: Call) -> Reply:
    try:
        report = await backup(
            call.desk.db, Path(call.args["file"]), whose(call.desk.config), overwrite=call.args["overwrite"]
        )
    except BackupError as error:
        raise CommandError(str(error)) from error
    rows = sum(report.rows.values())
    text = f"Written: {report.path}, {report.size:,} bytes, {count(rows, 'row')} of schema {report.schema}."
    data = {
        "file": str(report.path),
        "size": report.size,
        "schema": report.schema,
        "at": report.at,
        "rows": report.rows,
    }
    return Reply(text, data=data)


async def _restore(_: Call) -> Reply:
    raise CommandError("The bridge is running. Stop it first; then use the same command, which works without it.")


BACKUP = Command(
    "backup",
    "writes a copy of the database into a file, while the bridge runs",
    Need.ADMIN,
    _backup,
    GROUP,
    args=(Arg("file", "text", "the file to write, on the bridge's machine"),),
    options=(Option("overwrite", "replace the file if it is a backup", switch=True),),
    details="The file is one snapshot and can be read by its owner only. docs/backup.md says what else to keep.",
    examples=("backup bridge-backup.gz",),
    only_ctl=True,
)
RESTORE = Command(
    "restore",
    "puts a backup into the database of the stopped bridge",
    Need.ADMIN,
    _restore,
    GROUP,
    args=(Arg("file", "text", "the backup"),),
    options=(Option("replace", "throw away what the database holds now", switch=True),),
    details="Works only while the bridge is stopped: the command line does it itself. All of it is put back or "
    "nothing. At its next start the bridge reads back what was said since the backup.",
    examples=("restore bridge-backup.gz", "restore bridge-backup.gz --replace"),
    only_ctl=True,
)
COMMANDS = (BACKUP, RESTORE)
