"""Every backend has every call, with the same parameters, and every call has its name in the metrics."""

import inspect

import pytest

from letta_bridge import errors
from letta_bridge.letta.backend import Backend
from letta_bridge.letta.errors import Kind
from letta_bridge.letta.v1 import V1Backend
from letta_bridge.letta.watched import WatchedBackend
from letta_bridge.web import meters

CALLS = [name for name, value in vars(Backend).items() if inspect.isfunction(value) and not name.startswith("_")]


@pytest.mark.parametrize("kind", [V1Backend, WatchedBackend])
@pytest.mark.parametrize("call", CALLS)
def test_a_backend_has_the_call(kind: type, call: str) -> None:
    wanted, got = (inspect.signature(getattr(one, call)).parameters for one in (Backend, kind))
    assert list(got) == list(wanted)
    assert [one.kind for one in got.values()] == [one.kind for one in wanted.values()]


def test_every_call_is_counted_by_its_name() -> None:
    assert {*CALLS} - {"close"} <= {*meters._LETTA_CALLS}


def test_every_kind_of_trouble_has_its_sentence() -> None:
    assert {*errors.TROUBLES} == {*Kind}
