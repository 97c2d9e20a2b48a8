"""Bridge processes to be killed."""

from ..crash.conftest import processes  # noqa: F401
