"""OTLP over HTTP, by ``requests``: one attempt, a deadline that holds, an answer that tells what happened.

What ``requests`` leaves open is closed here. Its timeouts are per socket operation, and none covers the resolver or a
credential provider's call: the blocking part therefore runs on a thread that the caller can walk away from, and whose
connection it cuts as it goes. It adds credentials from .netrc: they are not asked for. It follows redirects: an OTLP
receiver has no reason to, and a redirect would take the headers with it, so a 3xx is an answer like another.

A connection that was kept alive may be dead when it is used again, because the receiver restarted or a proxy dropped it.
``urllib3`` sees that where the receiver has closed it; where the news is only on its way, the first write or read fails. If
no byte of an answer has come over such a used connection, the request is sent once more over a new one, within the same
deadline, and nothing is said about it. If the whole request had already been handed to the dead connection, the receiver
may in theory have taken it before it broke: the answer then carries ``perhaps_taken``, also where it is DELIVERED. This
doubles nothing that would not be doubled otherwise: whoever got LATER would send it again too.
"""

from __future__ import annotations

import gzip
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import replace
from http.client import RemoteDisconnected
from typing import Any, Final
from urllib.parse import unquote, urlunsplit

import requests
from opentelemetry.instrumentation.utils import suppress_instrumentation
from requests.adapters import HTTPAdapter

from otel_kit.telemetry.context import silenced
from otel_kit.telemetry.payload import Answer, Verdict
from otel_kit.telemetry.transport import verdicts
from otel_kit.telemetry.transport.attempt import Attempt, WatchedAdapter, current
from otel_kit.telemetry.transport.hands import Hands
from otel_kit.telemetry.transport.options import Options, split, user_agent

_logger = logging.getLogger(__name__)

#: Bytes of an answer that are read; the rest, and the connection with it, is dropped.
LARGEST_ANSWER: Final = 64 * 1024
# The thread that waits decides about the deadline; the socket's own timeouts come a little later and end a thread that
# nobody waits for.
_LATER_THAN_DEADLINE: Final = 1.0


class _Process:
    """What belongs to one process: sockets, threads and locks do not survive a fork."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.hands = Hands()
        self.attempts: set[Attempt] = set()
        self.session: requests.Session | None = None
        # Whether our own adapter makes the connections; else nothing is known of how far an attempt is.
        self.watched = True


class HttpTransport:
    """One signal's way over HTTP.

    Args:
        options: What is in force for the signal.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._secrets = options.secrets()
        self._url, self._auth = _without_userinfo(options)
        self._headers = {
            "user-agent": user_agent(),
            **options.headers,
            "content-type": "application/x-protobuf",
            # An answer is a few bytes; a compressed one could be many.
            "accept-encoding": "identity",
        }
        if options.compression != "none":
            self._headers["content-encoding"] = options.compression
        self._process = _Process()
        # The parent's, in a forked child: kept, since what urllib3 does when they are freed takes locks that another
        # thread of the parent's may have held.
        self._inherited: list[_Process] = []
        self._closed = False
        self._provider_refused = False

    def send(self, body: bytes, timeout: float | None = None) -> Answer:
        """Make one attempt; see `otel_kit.telemetry.transport.Transport`."""
        limit = self._options.timeout if timeout is None else min(timeout, self._options.timeout)
        deadline = time.monotonic() + limit
        if limit <= 0:
            return Answer(Verdict.LATER, "no time was left for an attempt", "Timeout")
        process = self._here()
        if process.hands.stuck:
            return Answer(Verdict.LATER, "earlier attempts still wait for a connection", "Timeout")
        attempt = Attempt(limit)
        process.attempts.add(attempt)
        try:
            if self._closed:
                return Answer(Verdict.LATER, "the transport is closed", "Closed")
            data = self._compress(body)
            context = copy_context()

            def work(slack: float = _LATER_THAN_DEADLINE) -> None:
                context.run(self._perform, process, attempt, data, deadline, slack)

            if process.hands.start(work, attempt.over):
                attempt.over.wait(max(deadline - time.monotonic(), 0.0))
            else:
                # No thread, as at the interpreter's end: the sockets' timeouts alone, and the resolver's own.
                attempt.deadline = deadline
                work(slack=0.0)
            answer = attempt.answer or self._unfinished(attempt, process)
            if attempt.answer is None:
                attempt.abandon()
            return answer
        except Exception as error:  # noqa: BLE001  # an application must not fail for its telemetry
            return Answer(Verdict.LATER, self._shown(f"{type(error).__name__}: {error}"), type(error).__name__)
        finally:
            process.attempts.discard(attempt)

    def renew(self) -> None:
        """Go on with a new connection; see `otel_kit.telemetry.transport.Transport`."""
        self._inherited.append(self._process)
        self._process = _Process()

    def close(self) -> None:
        """Give up the connection; see `otel_kit.telemetry.transport.Transport`."""
        self._closed = True
        process = self._process
        if process.pid != os.getpid():
            return
        for attempt in list(process.attempts):
            attempt.abandon()
        process.hands.close()
        session = process.session
        if session is not None:
            session.close()

    def _here(self) -> _Process:
        process = self._process
        if process.pid != os.getpid():
            self._inherited.append(process)
            process = self._process = _Process()
        return process

    def _compress(self, body: bytes) -> bytes:
        if self._options.compression == "gzip":
            return gzip.compress(body, compresslevel=6, mtime=0)
        if self._options.compression == "deflate":
            return zlib.compress(body)
        return body

    def _perform(self, process: _Process, attempt: Attempt, data: bytes, deadline: float, slack: float) -> None:
        current.set(attempt)
        try:
            with suppress_instrumentation(), silenced():
                answer = self._try(process, attempt, data, deadline, slack)
        except Exception as error:  # noqa: BLE001  # a credential provider may raise anything
            answer = self._failed(error, attempt, process)
        attempt.settle()
        if not attempt.abandoned:
            attempt.answer = answer

    def _try(self, process: _Process, attempt: Attempt, data: bytes, deadline: float, slack: float) -> Answer:
        session = self._session(process)
        try:
            return self._once(session, attempt, data, deadline, slack)
        except requests.ConnectionError:
            # See the module's text. A timeout is none: then the connection is not dead but slow.
            if not attempt.reused or attempt.seen or attempt.abandoned or time.monotonic() >= deadline:
                raise
            attempt.doubtful = attempt.sent
            return self._once(session, attempt, data, deadline, slack)

    def _once(self, session: requests.Session, attempt: Attempt, data: bytes, deadline: float, slack: float) -> Answer:
        options = self._options
        certificates = (options.client_certificate, options.client_key)
        response = session.request(
            "POST",
            self._url,
            data=data,
            headers=self._headers,
            auth=None if session.auth else self._auth,
            timeout=max(deadline - time.monotonic(), 0.001) + slack,
            allow_redirects=False,
            stream=True,
            # None: what the session, or REQUESTS_CA_BUNDLE, says.
            verify=options.certificate or None,
            cert=(certificates if all(certificates) else options.client_certificate) or None,
        )
        if attempt.abandoned:
            # Headers that were cut short by whoever gave up look as if they had come to their end.
            response.close()
            raise ConnectionAbortedError("abandoned")
        attempt.head = (response.status_code, response.headers)
        try:
            for part in response.iter_content(4096):
                attempt.body += part
                if len(attempt.body) >= LARGEST_ANSWER:
                    break
        except (requests.RequestException, OSError):
            pass  # The status has said what matters; the rest of the body did not come.
        finally:
            response.close()
        return self._answered(attempt)

    def _answered(self, attempt: Attempt) -> Answer:
        assert attempt.head is not None
        status, headers = attempt.head
        answer = verdicts.of_http(
            self._options.signal, status, (headers.get("content-type") or "").lower(), headers.get("retry-after"),
            attempt.body[:LARGEST_ANSWER], self._secrets,
        )  # fmt: skip
        return replace(answer, perhaps_taken=attempt.doubtful)

    def _unfinished(self, attempt: Attempt, process: _Process) -> Answer:
        """What is to be said of an attempt that nobody waits for any longer: out of time, or closed."""
        if attempt.head is not None:
            return self._answered(attempt)
        sent = attempt.sent or not process.watched
        if attempt.abandoned:
            return Answer(Verdict.LATER, "closed before an answer came", "Closed", perhaps_taken=sent)
        return _timed_out(attempt, sent=sent)

    def _failed(self, error: Exception, attempt: Attempt, process: _Process) -> Answer:
        kind = type(error).__name__
        if isinstance(error, requests.Timeout):
            return _timed_out(attempt, sent=attempt.sent or not process.watched)
        if isinstance(error, requests.RequestException) and isinstance(error, ValueError):
            # A URL or a header that cannot be sent: no request of this sender's will be.
            return Answer(Verdict.UNWELCOME, self._shown(f"{kind}: {error}"), kind)
        reason = _root(error)
        if attempt.sent:
            reason = f"the connection broke before an answer came: {reason}"
        # With a foreign adapter it is not known how far it got; a refused connection is known by its words.
        unknown = not process.watched and not isinstance(_system_error(error), ConnectionRefusedError)
        return Answer(Verdict.LATER, self._shown(reason), kind, perhaps_taken=attempt.sent or unknown)

    def _shown(self, reason: str) -> str:
        return verdicts.one_line(reason, self._secrets)

    def _session(self, process: _Process) -> requests.Session:
        with process.lock:
            if process.session is None:
                process.session = self._new_session()
                # A provider's session may come with an adapter of its own, which has its reasons.
                kind = type(process.session.get_adapter(self._url))
                process.watched = kind is HTTPAdapter
                if process.watched:
                    adapter = WatchedAdapter()
                    process.session.mount("https://", adapter)
                    process.session.mount("http://", adapter)
            return process.session

    def _new_session(self) -> requests.Session:
        provider = self._options.load_provider()
        if provider is None:
            return requests.Session()
        session = provider()
        if isinstance(session, requests.Session):
            return session
        if not self._provider_refused:
            self._provider_refused = True
            _logger.error(
                "otel-kit: the credential provider %r makes %s; accepted: a requests.Session. Going on without it",
                self._options.provider, type(session).__name__,
            )  # fmt: skip
        return requests.Session()


class _NoAuth(requests.auth.AuthBase):
    """Adds nothing. That there is one keeps ``requests`` from asking .netrc, whose passwords are not meant for telemetry."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def _without_userinfo(options: Options) -> tuple[str, Any]:
    """The URL without user and password, and what sends them; a header that was asked for comes first."""
    parts = split(options.endpoint)
    userinfo, _, host = parts.netloc.rpartition("@")
    url = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    if not userinfo or "authorization" in options.headers:
        return url, _NoAuth()
    return url, (unquote(parts.username or ""), unquote(parts.password or ""))


def _timed_out(attempt: Attempt, *, sent: bool) -> Answer:
    if attempt.sent or (sent and not attempt.connected):
        reason, status = f"no answer within {attempt.limit:g} s", "ReadTimeout"
    elif attempt.connected:
        reason, status = f"the request was not taken within {attempt.limit:g} s", "WriteTimeout"
    else:
        reason, status = f"no connection within {attempt.limit:g} s", "ConnectTimeout"
    return Answer(Verdict.LATER, reason, status, perhaps_taken=sent)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that are wrapped in it, outermost first."""
    found: list[BaseException] = [error]
    for wrapped in found:
        yield wrapped
        inside = (wrapped.__cause__, wrapped.__context__, getattr(wrapped, "reason", None), *wrapped.args)
        found.extend(item for item in inside if isinstance(item, BaseException) and item not in found)


def _system_error(error: BaseException) -> OSError | None:
    for wrapped in _chain(error):
        if isinstance(wrapped, OSError) and wrapped.errno is not None and wrapped.strerror:
            return wrapped
    return None


def _root(error: BaseException) -> str:
    """The system's own words for what went wrong, where there are any."""
    system = _system_error(error)
    if system is not None:
        words = str(system.strerror)
        return words if words.startswith("[") else f"[Errno {system.errno}] {words}"
    if any(isinstance(wrapped, RemoteDisconnected) for wrapped in _chain(error)):
        return "closed by the other side"
    *_, innermost = _chain(error)
    return f"{type(innermost).__name__}: {innermost}"
