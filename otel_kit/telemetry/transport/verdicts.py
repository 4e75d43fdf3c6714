"""What an answer means: HTTP statuses and gRPC codes as verdicts, and the reason in one line for people.

OTLP's specification has the lists (opentelemetry.io/docs/specs/otlp, "Failures"). Where this sender departs from them, it
keeps data that the specification lets a client drop, since it has a place to keep them:

* HTTP 408 and every 5xx but 501 and 505 are LATER, not only 502, 503 and 504: proxies and overloaded backends answer 500.
* gRPC UNKNOWN and INTERNAL are what HTTP's 500 is: a fault of the receiver's that it has no better word for (Tempo answers
  UNKNOWN while its ring is not ready, a proxy's 500 arrives as UNKNOWN, the collector says INTERNAL for what it says 500
  for over HTTP). LATER.
* gRPC RESOURCE_EXHAUSTED is retryable "only if the server signals that the recovery is possible" by RetryInfo. Without it,
  and unless it is about a message's size, it is LATER all the same: backends say it for a rate limit, as HTTP's 429, and
  nothing in the request is at fault.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from http.client import responses
from typing import Any, Final

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_kit.telemetry.payload import Answer, Signal, Verdict
from otel_kit.telemetry.secrets import SecretFinder

#: The longest wait that a receiver is granted, in seconds: one that asks for a day has a wrong clock or means no.
LONGEST_WAIT: Final = 300.0
#: Characters of a reason.
LONGEST_REASON: Final = 300

_RESPONSES: Final[dict[Signal, Any]] = {
    "traces": ExportTraceServiceResponse,
    "metrics": ExportMetricsServiceResponse,
    "logs": ExportLogsServiceResponse,
}
_REJECTED: Final[dict[Signal, tuple[str, str]]] = {
    "traces": ("rejected_spans", "rejectedSpans"),
    "metrics": ("rejected_data_points", "rejectedDataPoints"),
    "logs": ("rejected_log_records", "rejectedLogRecords"),
}

_GRPC: Final = {
    **dict.fromkeys(
        (
            "CANCELLED",
            "DEADLINE_EXCEEDED",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNKNOWN",
            "INTERNAL",
        ),
        Verdict.LATER,
    ),
    "RESOURCE_EXHAUSTED": Verdict.LATER,
    "INVALID_ARGUMENT": Verdict.REFUSED,
}
# grpc-go, gRPC's C core and grpc-java, in this order.
_ABOUT_SIZE: Final = re.compile(
    r"message.{0,40}larger than max|larger than max|message.{0,20}too large|exceeds maximum", re.IGNORECASE
)

_TAGS: Final = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^<>]*>", re.IGNORECASE | re.DOTALL)
_TITLE: Final = re.compile(r"<title[^<>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_UNSHOWABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\s]+")
_USERINFO: Final = re.compile(r"://[^\s/@]*@")

_finder = SecretFinder()


def one_line(text: str, secrets: Iterable[str] = ()) -> str:
    """A text as a reason: one line, at most 300 characters, without ``secrets`` and what else looks like one."""
    # Cut twice: once so that a megabyte is not searched through, with room for secrets at the edge, and once for good.
    text = _UNSHOWABLE.sub(" ", text[: 16 * LONGEST_REASON]).strip()
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    text = _finder.hide(_USERINFO.sub("://", text))
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."


def http_verdict(status: int) -> Verdict:
    """What an HTTP status says about the request."""
    if 200 <= status < 300:
        return Verdict.DELIVERED
    if status in (408, 429) or (500 <= status < 600 and status not in (501, 505)):
        return Verdict.LATER
    if status in (400, 422):
        return Verdict.REFUSED
    if status == 413:
        return Verdict.TOO_LARGE
    return Verdict.UNWELCOME


def of_http(
    signal: Signal, status: int, kind: str, retry_after: str | None, body: bytes, secrets: Iterable[str]
) -> Answer:
    """The answer that an HTTP response is.

    Args:
        signal: What was sent.
        status: The response's status.
        kind: Its ``Content-Type``.
        retry_after: Its ``Retry-After``.
        body: Its body, or as much of it as came in time.
        secrets: Texts that the reason must not show.
    """
    verdict = http_verdict(status)
    if verdict is Verdict.DELIVERED:
        return _delivered(signal, str(status), "json" if "json" in kind else kind, body, secrets)
    message = _message(kind, body)
    reason = f"{status}: {message}" if message else f"{status} {responses.get(status, '')}".strip()
    wait = seconds_of(retry_after) if verdict is Verdict.LATER else None
    return Answer(verdict, one_line(reason, secrets), str(status), wait)


def of_grpc(
    code: str, details: str, metadata: Iterable[tuple[str, str | bytes]], secrets: Iterable[str], *, perhaps_taken: bool
) -> Answer:
    """The answer that a gRPC status other than OK is."""
    wait = _retry_info(metadata)
    verdict = _GRPC.get(code, Verdict.UNWELCOME)
    if code == "RESOURCE_EXHAUSTED" and wait is None and _ABOUT_SIZE.search(details):
        verdict = Verdict.TOO_LARGE
    return Answer(
        verdict,
        one_line(f"{code}: {details}" if details else code, secrets),
        code,
        wait if verdict is Verdict.LATER else None,
        perhaps_taken=perhaps_taken,
    )


def of_grpc_response(signal: Signal, body: bytes, secrets: Iterable[str]) -> Answer:
    """The answer that a gRPC response with status OK is."""
    return _delivered(signal, "OK", "application/x-protobuf", body, secrets)


def seconds_of(retry_after: str | None) -> float | None:
    """Seconds from now that a ``Retry-After`` means, a number or an HTTP date, from 0 to `LONGEST_WAIT`."""
    given = (retry_after or "").strip()
    if not given:
        return None
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(given).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if math.isfinite(seconds) else None


def _delivered(signal: Signal, status: str, kind: str, body: bytes, secrets: Iterable[str]) -> Answer:
    rejected, message = _partial(signal, kind, body)
    reason = one_line(message, secrets)
    if rejected and not reason:
        reason = f"{rejected} rejected, no reason given"
    return Answer(Verdict.DELIVERED, reason, status, rejected=rejected)


def _partial(signal: Signal, kind: str, body: bytes) -> tuple[int, str]:
    """How many items were rejected, and why: nothing and "" for whatever is not a proper answer."""
    field, key = _REJECTED[signal]
    if kind == "json":
        found = _json(body)
        partial = found.get("partialSuccess") if isinstance(found, dict) else None
        if not isinstance(partial, dict):
            return 0, ""
        try:
            return max(int(partial.get(key) or 0), 0), str(partial.get("errorMessage") or "")
        except (ValueError, TypeError, OverflowError):
            return 0, ""
    if kind and "protobuf" not in kind:
        return 0, ""
    try:
        partial_success = _RESPONSES[signal].FromString(body).partial_success
    except DecodeError:
        return 0, ""
    return max(getattr(partial_success, field), 0), partial_success.error_message


def _message(kind: str, body: bytes) -> str:
    """What an error's body says: google.rpc.Status, JSON, HTML or text."""
    if not body:
        return ""
    if "protobuf" in kind or not kind:
        try:
            message: str = Status.FromString(body).message
        except DecodeError:
            message = ""
        if message or kind:
            return message
    # The expressions below are not meant for more.
    text = body[: 16 * LONGEST_REASON].decode("utf-8", "replace")
    if "json" in kind or text.lstrip()[:1] == "{":
        found = _json(body)
        if isinstance(found, dict):
            return _said_in(found)
    if "html" in kind or text.lstrip()[:1] == "<":
        title = _TITLE.search(text)
        return (title[1] if title else _TAGS.sub(" ", text)).strip()
    return text.strip()


def _said_in(found: dict[str, Any]) -> str:
    for key in ("message", "error", "detail", "details", "reason"):
        said = found.get(key)
        if isinstance(said, dict):
            said = said.get("message")
        if isinstance(said, str) and said.strip():
            return said.strip()
    return json.dumps(found)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _retry_info(metadata: Iterable[tuple[str, str | bytes]]) -> float | None:
    """The delay that a RetryInfo among the trailing metadata asks for, seconds; None without one."""
    for name, value in metadata:
        if not isinstance(value, bytes):
            continue
        info = RetryInfo()
        try:
            if name == "grpc-status-details-bin":
                details = (detail for detail in Status.FromString(value).details if detail.Is(RetryInfo.DESCRIPTOR))
                for detail in details:
                    detail.Unpack(info)
                    return _bounded(info)
            elif name == "google.rpc.retryinfo-bin":
                info.ParseFromString(value)
                return _bounded(info)
        except DecodeError:
            continue
    return None


def _bounded(info: RetryInfo) -> float:
    seconds: float = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
    return min(max(seconds, 0.0), LONGEST_WAIT)
