"""``rebuild``: what the database lacks, from what the rooms say of themselves."""

from dataclasses import asdict

from ..matrix.homeserver import HomeserverError
from ..mirror.rebuild import RebuildReport, rebuild
from .call import Call
from .show import bullets, count
from .table import Command, CommandError, Need, Option, Reply

_GROUP = "Data"


async def _rebuild(call: Call) -> Reply:
    try:
        report = await rebuild(call.desk, dry_run=bool(call.args["dry-run"]))
    except HomeserverError as error:
        raise CommandError(f"The homeserver does not say which rooms the bridge is in ({error}). Try again.") from None
    return Reply(_told(report), data=asdict(report), ok=not report.unreadable)


def _told(report: RebuildReport) -> str:
    found = [
        (len(report.agents), "agent"),
        (len(report.portals), "agent's room"),
        (len(report.told), "agent's lost owner or dismissal"),
        (int(report.space is not None), "space"),
        (len(report.past), "former room"),
        (len(report.rooms), "other room"),
        (report.invitations, "remembered invitation"),
    ]
    parts = [count(number, one) for number, one in found if number]
    looked = f"{count(report.looked, 'room')} read."
    if not parts:
        text = f"{looked} The database lacks nothing that they tell."
    else:
        verb = "Would be written" if report.dry_run else "Written"
        text = f"{looked} {verb}: {', '.join(parts)}."
    if report.conflicts:
        text += f"\n\nThe rooms and the database disagree, nothing is changed there:\n\n{bullets(report.conflicts)}"
    if report.unreadable:
        text += f"\n\nCould not be read, so repeat this later:\n\n{bullets(report.unreadable)}"
    return text


COMMANDS = (
    Command(
        "rebuild",
        "writes into the database what it lacks, from what the rooms say of themselves",
        Need.ADMIN,
        _rebuild,
        _GROUP,
        options=(Option("dry-run", "only say what would be written", switch=True),),
        details=(
            "For a database that was lost without a backup: the bot reads every room it is in and writes down agents, "
            "their rooms, the space, members, and who was invited already, so that nobody is invited again. What the "
            "database has is never overwritten. Messages, conversations, jobs and permissions are not in the rooms."
        ),
        examples=("rebuild --dry-run", "rebuild"),
        changes=True,
        only_ctl=True,
    ),
)
