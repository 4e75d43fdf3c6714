"""Ask the running backends: what arrived in Tempo, Prometheus and Loki."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import httpx

from otel_kit.stack.endpoints import Endpoints

T = TypeVar("T")


def poll(probe: Callable[[], T], timeout: float, interval: float = 0.25) -> T:
    """Call ``probe`` until its answer is true, for at most ``timeout`` seconds; return the last answer, true or not."""
    deadline = time.monotonic() + timeout
    while True:
        answer = probe()
        if answer or time.monotonic() >= deadline:
            return answer
        time.sleep(interval)


class StackQuery:
    """Queries to the three backends. Use as a context manager, or call :meth:`close`.

    Every method raises httpx.HTTPStatusError when a backend refuses the query, and httpx.TransportError when it does not
    answer within ``timeout`` seconds.
    """

    def __init__(self, endpoints: Endpoints, timeout: float = 15.0) -> None:
        self._endpoints = endpoints
        # The stack is on this machine: a proxy from the environment would only be in the way.
        self._client = httpx.Client(timeout=timeout, trust_env=False)

    def __enter__(self) -> StackQuery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def tempo_trace(self, trace_id: str) -> list[dict[str, Any]]:
        """All spans of a trace, by its 32 hex digits; empty when Tempo does not have it.

        Spans are OTLP JSON (ids in base64), each with the ``resource`` that it came with.
        """
        answer = self._client.get(
            f"{self._endpoints.tempo}/api/traces/{trace_id}", headers={"Accept": "application/json"}
        )
        if answer.status_code == 404:
            return []
        answer.raise_for_status()
        found = answer.json()
        groups = found.get("batches") or found.get("trace", {}).get("resourceSpans", [])
        return [
            {**span, "resource": group.get("resource", {})}
            for group in groups
            for scope in group.get("scopeSpans", group.get("instrumentationLibrarySpans", []))
            for span in scope["spans"]
        ]

    def tempo_search(
        self, traceql: str, start: float | None = None, end: float | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """Traces that match ``traceql`` between two unix times in seconds (the last hour by default)."""
        now = time.time()
        window = {"start": int(now - 3600 if start is None else start), "end": int(now + 1 if end is None else end)}
        found = self._get(f"{self._endpoints.tempo}/api/search", {"q": traceql, "limit": limit, **window})
        traces: list[dict[str, Any]] = found.get("traces") or []
        return traces

    def prom_query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """The instant vector (or matrix) of ``expr``, now or at a unix time in seconds."""
        params: dict[str, Any] = {"query": expr} if at is None else {"query": expr, "time": at}
        result: list[dict[str, Any]] = self._get(f"{self._endpoints.prometheus}/api/v1/query", params)["data"]["result"]
        return result

    def prom_value(self, expr: str, at: float | None = None) -> float | None:
        """The value of an expression that has one series; None when it has none."""
        result = self.prom_query(expr, at)
        return float(result[0]["value"][1]) if result else None

    def prom_exemplars(self, expr: str, start: float | None = None, end: float | None = None) -> list[dict[str, Any]]:
        """Exemplars of the series in ``expr`` between two unix times (the last hour by default)."""
        now = time.time()
        params = {"query": expr, "start": now - 3600 if start is None else start, "end": now if end is None else end}
        result: list[dict[str, Any]] = self._get(f"{self._endpoints.prometheus}/api/v1/query_exemplars", params)["data"]
        return result

    def loki_query(
        self, logql: str, start: float | None = None, end: float | None = None, limit: int = 1000
    ) -> list[dict[str, Any]]:
        """Lines that match ``logql`` between two unix times (the last hour by default), newest first.

        Each has ``line``, ``time`` (unix seconds) and ``labels`` (index labels and structured metadata together).
        """
        now = time.time()
        window = {
            "start": _nanos(now - 3600 if start is None else start),
            "end": _nanos(now + 1 if end is None else end),
        }
        found = self._get(f"{self._endpoints.loki}/loki/api/v1/query_range", {"query": logql, "limit": limit, **window})
        lines = [
            {"line": line, "time": int(stamp) / 1e9, "labels": stream["stream"]}
            for stream in found["data"]["result"]
            for stamp, line, *_ in stream["values"]
        ]
        return sorted(lines, key=lambda entry: entry["time"], reverse=True)

    def loki_metric(self, logql: str, at: float | None = None) -> list[dict[str, Any]]:
        """The instant vector of a LogQL metric query, such as ``sum(count_over_time(...))``."""
        params: dict[str, Any] = {"query": logql} if at is None else {"query": logql, "time": _nanos(at)}
        result: list[dict[str, Any]] = self._get(f"{self._endpoints.loki}/loki/api/v1/query", params)["data"]["result"]
        return result

    def _get(self, url: str, params: dict[str, Any]) -> Any:
        return self._client.get(url, params=params).raise_for_status().json()


def _nanos(seconds: float) -> int:
    return int(seconds * 1e9)
