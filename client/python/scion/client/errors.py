"""One exception for whatever a server, or the way to it, says no with."""

from __future__ import annotations

# The names of gRPC for the statuses that the HTTP API has (a 400 may be OUT_OF_RANGE or UNIMPLEMENTED, too).
STATUS_OF_HTTP = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
                  405: "INVALID_ARGUMENT", 408: "DEADLINE_EXCEEDED", 409: "FAILED_PRECONDITION",
                  413: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 431: "INVALID_ARGUMENT", 499: "CANCELLED",
                  503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
# And of the errors that come in a stream, by OpenAI's "type".
STATUS_OF_TYPE = {"authentication_error": "UNAUTHENTICATED", "permission_error": "PERMISSION_DENIED",
                  "rate_limit_error": "RESOURCE_EXHAUSTED", "service_unavailable_error": "UNAVAILABLE",
                  "timeout_error": "DEADLINE_EXCEEDED", "invalid_request_error": "INVALID_ARGUMENT"}


class ScionError(Exception):
    """status: gRPC's name, over HTTP too ("NOT_FOUND": no such domain, "RESOURCE_EXHAUSTED": the queue is full, try
    again, "UNAVAILABLE": no server there, "DEADLINE_EXCEEDED": not within the timeout). message: the server's."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
