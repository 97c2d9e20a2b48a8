"""Why a turn can fail, and the shapes in which the client learns of it."""

from .wire import ApiError, Json

PENDING = (
    "CONFLICT: Cannot send a new message: The agent is waiting for approval on a tool call. "
    "Please approve or deny the pending request before continuing."
)
UNKNOWN = "An unknown error occurred with the LLM streaming request."

_MODEL: dict[int, tuple[int, str, str, str]] = {
    # model's status: Letta's status, type, message, head of the detail
    400: (
        400,
        "llm_bad_request",
        "The request to the LLM model provider was invalid.",
        "INVALID_ARGUMENT: Bad request to OpenAI-compatible endpoint",
    ),
    401: (
        401,
        "llm_authentication",
        "Authentication failed with the LLM model provider.",
        "UNAUTHENTICATED: Authentication failed with OpenAI",
    ),
    402: (
        402,
        "llm_insufficient_credits",
        "Insufficient credits for LLM request. Please check your account.",
        "PAYMENT_REQUIRED: Insufficient credits",
    ),
    429: (
        429,
        "llm_rate_limit",
        "Rate limit exceeded for LLM model provider. Please wait before making another request.",
        "RATE_LIMIT_EXCEEDED: Rate limited by OpenAI",
    ),
}
_OTHER = (500, "llm_error", "An error occurred with the LLM request.", "INTERNAL_SERVER_ERROR: OpenAI API error")


class TurnFailure(Exception):
    """A turn ended badly.

    Attributes:
        stop_reasons: the stop reasons that a stream shows before its error; the last one is the run's.
        status: the run's final status when it was streamed (the real server calls some failures completed).
        done: whether a foreground stream still ends with ``[DONE]``.
    """

    stop_reasons: tuple[str, ...] = ("error",)
    status = "failed"
    done = True

    def error_message(self, run_id: str) -> Json:
        """The event of a stream."""
        return {
            "message_type": "error_message",
            "run_id": run_id,
            "error_type": self.error_type,
            "message": self.message,
            "detail": str(self),
            "seq_id": None,
        }

    @property
    def error_type(self) -> str:
        return "internal_error"

    @property
    def message(self) -> str:
        return UNKNOWN

    def http(self, *, agents_route: bool) -> ApiError:
        """The answer to a request that does not stream."""
        return ApiError(400, {"detail": str(self)})


class Refused(TurnFailure):
    """The input cannot be used."""


class Pending(TurnFailure):
    """An approval is waited for."""

    def __init__(self, request_id: str) -> None:
        super().__init__(PENDING)
        self.request_id = request_id

    @property
    def message(self) -> str:
        return PENDING

    def http(self, *, agents_route: bool) -> ApiError:
        if not agents_route:
            return ApiError(409, {"detail": PENDING})
        detail = {"code": "PENDING_APPROVAL", "message": PENDING, "pending_request_id": self.request_id}
        return ApiError(409, {"detail": detail})


class ModelError(TurnFailure):
    """The model answered with an HTTP error."""

    stop_reasons = ("llm_api_error",)

    def __init__(self, code: int, says: str = "") -> None:
        self.letta_status, self.type, self.text, head = _MODEL.get(code, _OTHER)
        if code == 403:
            head = "PERMISSION_DENIED: Permission denied by OpenAI"
        body = {"error": {"message": f"fake error {code}{says}", "type": "fake_error", "code": "fake"}}
        super().__init__(f"{head}: Error code: {code} - {body}")

    @property
    def error_type(self) -> str:
        # a stream tells fewer kinds apart than a plain answer
        return self.type if self.type in ("llm_authentication", "llm_rate_limit") else "llm_error"

    @property
    def message(self) -> str:
        return self.text if self.error_type != "llm_error" else _OTHER[2]

    def http(self, *, agents_route: bool) -> ApiError:
        error = {"type": self.type, "message": self.text, "detail": str(self)}
        return ApiError(self.letta_status, {"error": error})


class ContextFull(TurnFailure):
    """The model finds the request too large (413), after Letta tried to compact the context."""

    def __init__(self, *, compacted: bool) -> None:
        body = {"error": {"message": "fake error 413", "type": "fake_error", "code": "fake"}}
        head = "CONTEXT_WINDOW_EXCEEDED: Request too large for OpenAI (413): Error code: 413"
        super().__init__(f"{head} - {body} ({{'is_byok': False}})")
        self.compacted = compacted
        self.done = not compacted
        self.status = "completed" if compacted else "failed"

    @property
    def message(self) -> str:
        return "An error occurred during agent execution." if self.compacted else str(self)


class Dropped(TurnFailure):
    """The model's connection broke in the middle of its answer."""

    stop_reasons = ("error", "llm_api_error")
    status = "completed"
    done = False

    def __init__(self) -> None:
        super().__init__(
            "INTERNAL_SERVER_ERROR: Connection error during OpenAI streaming: peer closed connection without sending "
            "complete message body (incomplete chunked read)"
        )

    @property
    def message(self) -> str:
        return "An error occurred during agent execution."


class Vanished(TurnFailure):
    """The agent was deleted under the turn."""

    def __init__(self, step_id: str, run_id: str) -> None:
        super().__init__(f"Step with id {step_id} does not exist")
        self.run_id = run_id

    def http(self, *, agents_route: bool) -> ApiError:
        return ApiError(404, {"detail": f"Run not found with id='['{self.run_id}']'"})


class Cancelled(Exception):
    """The run was cancelled while it streamed."""
