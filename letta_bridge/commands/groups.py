"""The one table of all commands."""

from .table import Table

TABLE = Table.of([])
