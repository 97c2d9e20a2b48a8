"""Every kind of job."""

from .steps import JobKind

KINDS: tuple[JobKind, ...] = ()
