"""How a command ended, for service managers and scripts. The numbers are a promise: they never change."""

from enum import IntEnum


class Exit(IntEnum):
    """An exit code per class of trouble."""

    OK = 0
    FAILED = 1  # a command of ctl was refused, or failed
    USAGE = 2  # the command line itself
    CONFIG = 10  # the configuration cannot be used
    REGISTRATION = 11  # the registration, here or in the homeserver, does not belong to the configuration
    DATABASE = 12  # the database cannot be used, or is of a newer version
    HOMESERVER = 13  # the homeserver cannot be reached
    AS_TOKEN = 14  # the homeserver does not accept as_token
    NAMESPACES = 15  # the homeserver knows other namespaces or another bot
    PING = 16  # the homeserver cannot reach the bridge
    LETTA = 17  # Letta cannot be reached
    LETTA_AUTH = 18  # Letta does not accept the key
    LETTA_AGENTS = 19  # Letta is of an unknown kind, or its agents cannot be listed
    PORT = 20  # the port is taken by another program, or cannot be listened on
    RUNNING = 21  # another process of the bridge holds the database
    SMOKE = 22  # the homeserver does not do what the bridge needs of it
    NOT_RUNNING = 23  # ctl found no bridge to talk to


MEANING = {
    Exit.OK: "everything is in order",
    Exit.FAILED: "a command of 'letta-bridge ctl' was refused, or failed",
    Exit.USAGE: "the command line is wrong, or a file is in the way",
    Exit.CONFIG: "the configuration cannot be used",
    Exit.REGISTRATION: "the registration, here or in the homeserver, does not belong to the configuration",
    Exit.DATABASE: "the database cannot be used, or was written by a newer version",
    Exit.HOMESERVER: "the homeserver cannot be reached",
    Exit.AS_TOKEN: "the homeserver does not accept as_token",
    Exit.NAMESPACES: "the homeserver knows other namespaces or another bot user",
    Exit.PING: "the homeserver cannot reach the bridge",
    Exit.LETTA: "Letta cannot be reached",
    Exit.LETTA_AUTH: "Letta does not accept the key",
    Exit.LETTA_AGENTS: "Letta's agents cannot be listed",
    Exit.PORT: "the port is taken by another program, or cannot be listened on",
    Exit.RUNNING: "another process of the bridge uses the database",
    Exit.SMOKE: "the homeserver does not do everything that the bridge needs",
    Exit.NOT_RUNNING: "the bridge is not running here, so ctl cannot reach it",
}
