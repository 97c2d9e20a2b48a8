"""Who counts as a user of the bridge although the configuration does not say so."""

from ..db.access import AccessTable
from ..db.database import Database, Reader
from ..routing import rights
from ..routing.permissions import Grant, Level


async def anywhere(db: Database, whole: Grant, reader: Reader | None = None) -> Grant:
    """What this person may do with the bot: ``whole`` is what the configuration says. Asks only for whom it lets in
    nowhere.
    """
    if whole.level >= Level.USER or rights.settled(whole):
        return whole
    table = AccessTable(db)
    given = await table.to(rights.names(whole), reader)
    return rights.anywhere(whole, given, owner=await table.owns(whole.mxid, reader))
