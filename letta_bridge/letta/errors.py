"""What can go wrong with Letta, and what is known about the message when it does."""

import re
from enum import Enum

from ..ids import RunID

_CLASS = re.compile(
    r"HTTP \d{3}(?:: (?:llm|bedrock|context|internal|invalid|insufficient|stream)_[a-z_]{1,40}(?=:))?"
    r"|(?:llm|bedrock|context|internal|invalid|insufficient|stream)_[a-z_]{1,40}(?=:)"
    r"|[A-Z][A-Za-z]{1,30}(?:Error|Timeout)\b"
)
"""How a detail begins to which a class was given: nothing else of it is sure to quote nobody."""


class Kind(Enum):
    """The classes of trouble a person or an admin can tell apart."""

    UNREACHABLE = "unreachable"  # no answer, connection refused, 502/503/504
    BAD_KEY = "bad_key"  # 401 from Letta itself
    BUSY = "busy"  # 409 that names another run
    APPROVAL = "approval"  # 409: an approval is pending
    MODEL = "model"  # the model behind Letta failed; may pass
    MODEL_REFUSED = "model_refused"  # the model's provider refuses: its key, its bill, the request
    CONTEXT_FULL = "context_full"  # the conversation does not fit the model any more
    AGENT_GONE = "agent_gone"  # 404 for the agent
    NOT_OURS = "not_ours"  # the same 404, while the Letta that answers may be another than the one of the mirror
    CONVERSATION_GONE = "conversation_gone"  # 404 for the conversation; the agent is there
    NO_MODEL = "no_model"  # Letta does not know the model that an agent is to have, or has none
    REJECTED = "rejected"  # Letta refused the request itself (400, 422)
    TIMEOUT = "timeout"  # the deadline of the turn passed
    INTERRUPTED = "interrupted"  # the stream broke off before the run ended
    INTERNAL = "internal"  # anything else


class Delivery(Enum):
    """What is known of the messages that were being handed over."""

    NO = "no"  # proven: Letta has not taken them and never will
    UNKNOWN = "unknown"  # must be looked up before anything is repeated
    YES = "yes"  # Letta took them; the run exists


class LettaError(Exception):
    """A failed call to Letta. As a text it is its kind and class, because a provider may quote the prompt.

    Args:
        kind: the class of trouble.
        detail: one line of what was said; never a secret, but it may quote a message: not for logs above DEBUG.
        delivery: what is known of the messages of the call.
        run_id: the run concerned: ours, or for ``BUSY`` the other one.
        retry_after: seconds Letta asked to wait, when it did.
        refused: nothing listens where Letta should: its process is not there, and what it was doing has ended.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        delivery: Delivery = Delivery.NO,
        run_id: RunID | None = None,
        retry_after: float | None = None,
        refused: bool = False,
    ) -> None:
        named = _CLASS.match(detail)
        super().__init__(f"{kind.value}: {named[0]}" if named else kind.value)
        self.kind = kind
        self.detail = detail
        self.delivery = delivery
        self.run_id = run_id
        self.retry_after = retry_after
        self.refused = refused
