"""Failures of others in plain words."""

from ..matrix.homeserver import HomeserverError


def homeserver_words(error: HomeserverError) -> str:
    """A failed call."""
    if not error.status:
        return "the homeserver cannot be reached"
    if error.forbidden:
        return f"the homeserver refused it ({error})"
    return f"the homeserver answered {error}"
