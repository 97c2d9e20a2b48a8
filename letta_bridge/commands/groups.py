"""The one table of all commands."""

from . import (
    backup,
    basic,
    cleaning,
    grouping,
    history,
    letta_matrix,
    letters,
    life,
    listing,
    managing,
    messages,
    mirroring,
    pausing,
    people,
    rebuilding,
)
from .table import Table

TABLE = Table.of(
    [
        basic.COMMANDS,
        listing.COMMANDS,
        life.COMMANDS,
        grouping.COMMANDS,
        history.COMMANDS,
        mirroring.COMMANDS,
        pausing.COMMANDS,
        people.COMMANDS,
        managing.COMMANDS,
        messages.COMMANDS,
        letters.COMMANDS,
        cleaning.COMMANDS,
        letta_matrix.COMMANDS,
        backup.COMMANDS,
        rebuilding.COMMANDS,
    ]
)
