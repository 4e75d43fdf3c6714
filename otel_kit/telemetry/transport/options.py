"""What the OTEL_EXPORTER_OTLP_* variables of one signal come to.

For every variable the signal's own comes first (OTEL_EXPORTER_OTLP_TRACES_TIMEOUT), then the common one
(OTEL_EXPORTER_OTLP_TIMEOUT), then the default; an empty one counts as not set. What is in force:

========================== ===========================================================================================
ENDPOINT                   the signal's is used as it is, path included; to the common one HTTP adds /v1/<signal>
PROTOCOL                   http/protobuf (default) or grpc, which needs the extra
HEADERS                    name=value, name=value; values may be URL-encoded. The keyword ``headers`` wins, name by name
TIMEOUT                    seconds, as in Python's SDK (the specification says milliseconds); default 10
COMPRESSION                none (default), gzip, and for HTTP deflate
CERTIFICATE                file with the certificates to trust, instead of the system's
CLIENT_CERTIFICATE, _KEY   files; the key may be in the certificate's file
INSECURE                   gRPC without a scheme in the endpoint: true for no TLS; default false
========================== ===========================================================================================

and OTEL_PYTHON_EXPORTER_OTLP_{HTTP,GRPC}_[<SIGNAL>_]CREDENTIAL_PROVIDER: the name of an entry point of the group
``opentelemetry_otlp_credential_provider`` that makes a ``requests.Session`` or ``grpc.ChannelCredentials``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import SplitResult, urlsplit, urlunsplit

from opentelemetry.util.re import parse_env_headers

from otel_kit._version import __version__
from otel_kit.settings import PROTOCOLS, Settings, without_credentials
from otel_kit.telemetry.payload import Signal

#: Seconds that an attempt may take where nothing is set (the specification's default).
DEFAULT_TIMEOUT: Final = 10.0

_DEFAULT_ENDPOINTS: Final = {"http/protobuf": "http://127.0.0.1:4318", "grpc": "http://127.0.0.1:4317"}
_COMPRESSIONS: Final = {"http/protobuf": ("none", "gzip", "deflate"), "grpc": ("none", "gzip")}
_PROVIDERS: Final = "opentelemetry_otlp_credential_provider"
# RFC 9110's token for the name, its field-value (in the part that every receiver takes) for the value.
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_METADATA_VALUE: Final = re.compile(r"[\x20-\x7e]*")
# Ours to say: a receiver that is told otherwise does not understand the body.
_OURS: Final = frozenset({"content-type", "content-encoding", "content-length", "host", "transfer-encoding", "te"})

T = TypeVar("T")


def endpoint_of(settings: Settings, signal: str, protocol: str) -> str:
    """Where a signal goes: its own variable (used as it is, path included), else the common endpoint, else the default."""
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "").strip()
    if own:
        return own
    base: str = settings.endpoint or _DEFAULT_ENDPOINTS[protocol]
    if protocol == "grpc":
        return base
    return f"{'' if '://' in base else 'http://'}{base.rstrip('/')}/v1/{signal}"


@dataclass(frozen=True, slots=True)
class Options:
    """How one signal travels. Files are paths as they were given.

    Attributes:
        endpoint: With scheme; with credentials, where the URL holds some.
        headers: By lower-case name, without the exporter's own.
        timeout: Seconds that one attempt may take.
        certificate: The certificates to trust; ``""``: the system's.
        insecure: gRPC without TLS.
        provider: Name of the credential provider, ``""`` for none.
        complaints: What was not accepted, one sentence each.
    """

    signal: Signal
    protocol: str
    endpoint: str
    headers: Mapping[str, str]
    timeout: float
    compression: str
    certificate: str
    client_certificate: str
    client_key: str
    insecure: bool
    provider: str
    complaints: tuple[str, ...]

    def fingerprint(self) -> str:
        """12 hexadecimal digits over all that decides whose data it is and who may read it."""
        ingredients = [
            self.signal, self.protocol, self.endpoint, sorted(self.headers.items()), self.certificate,
            self.client_certificate, self.client_key, self.insecure, self.provider,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:12]

    def secrets(self) -> tuple[str, ...]:
        """Texts that must not be shown: the headers' values and the endpoint's user and password."""
        found = {part for value in self.headers.values() for part in (value, value.rpartition(" ")[2])}
        parts = split(self.endpoint)
        found.update({parts.password or "", parts.username or ""})
        # Shorter ones are words like "1" and "true", which would tear holes into every message.
        return tuple(sorted((text for text in found if len(text) >= 6), key=len, reverse=True))

    def load_provider(self) -> Callable[[], object] | None:
        """The credential provider's function, None where there is no provider."""
        for entry in _provider(self.provider):
            loaded: Callable[[], object] = entry.load()
            return loaded
        return None


def shown(endpoint: str) -> str:
    """An endpoint for messages: no credentials, nothing after the path, where some receivers take a key."""
    parts = split(endpoint)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")).removeprefix("//")


def split(endpoint: str) -> SplitResult:
    """The parts of an endpoint, which may be without a scheme."""
    return urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")


def user_agent() -> str:
    """As the specification of the OTLP exporter has it, the distribution's name first."""
    return f"otel-kit/{__version__} OTel-OTLP-Exporter-Python/{_exporter_version()}"


def resolve(settings: Settings, signal: Signal) -> Options:
    """Read what is in force for a signal. Logs nothing; what is not accepted is told by ``Options.complaints``."""
    reader = _Reader(signal)
    protocol = _protocol(reader, settings)
    endpoint = _endpoint(reader, settings, protocol)
    scheme = endpoint.partition("://")[0] if "://" in endpoint else ""
    insecure = reader.value("INSECURE", _flag, "true or false", default=False)
    if scheme or protocol != "grpc":
        insecure = scheme == "http"
    accepted = _COMPRESSIONS[protocol]
    return Options(
        signal=signal,
        protocol=protocol,
        endpoint=endpoint,
        headers=_headers(reader, settings, protocol),
        timeout=reader.value("TIMEOUT", _seconds, "seconds, more than 0", default=DEFAULT_TIMEOUT),
        compression=reader.value("COMPRESSION", _one_of(accepted), ", ".join(accepted), default="none"),
        certificate=reader.value("CERTIFICATE", _file, "a file that can be read", default=""),
        client_certificate=reader.value("CLIENT_CERTIFICATE", _file, "a file that can be read", default=""),
        client_key=reader.value("CLIENT_KEY", _file, "a file that can be read", default=""),
        insecure=insecure,
        provider=_provider_name(reader, protocol),
        complaints=tuple(reader.complaints),
    )


class _Reader:
    """Reads a signal's variables and notes what is not accepted."""

    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self.complaints: list[str] = []

    def names(self, name: str) -> tuple[str, str]:
        return f"OTEL_EXPORTER_OTLP_{self.signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"

    def first(self, *variables: str) -> tuple[str, str]:
        """The first variable that is set, and its value; two empty strings where none is."""
        for variable in variables:
            given = os.environ.get(variable, "").strip()
            if given:
                return variable, given
        return "", ""

    def value(self, name: str, parse: Callable[[str], T], accepted: str, default: T) -> T:
        variable, given = self.first(*self.names(name))
        if not variable:
            return default
        try:
            return parse(given)
        except (ValueError, OSError):
            self.refuse(variable, given, accepted, repr(default) if default != "" else "without it")
            return default

    def refuse(self, variable: str, given: str, accepted: str, instead: str) -> None:
        given = without_credentials(repr(given))
        self.complaints.append(f"{variable}={given} is not accepted; accepted: {accepted}. Going on with {instead}")


def _protocol(reader: _Reader, settings: Settings) -> str:
    protocol = settings.protocol
    variable, given = reader.first(reader.names("PROTOCOL")[0])
    if variable and given.lower() in PROTOCOLS:
        protocol = given.lower()
    elif variable:
        reader.refuse(variable, given, " or ".join(PROTOCOLS), repr(protocol))
    if protocol == "grpc" and find_spec("grpc") is None:
        reader.complaints.append(
            "protocol 'grpc' needs the extra: pip install 'otel-kit[grpc]'. Going on with http/protobuf"
        )
        return "http/protobuf"
    return protocol


def _endpoint(reader: _Reader, settings: Settings, protocol: str) -> str:
    endpoint = settings.endpoint or _DEFAULT_ENDPOINTS[protocol]
    if protocol != "grpc":
        endpoint = f"{endpoint.rstrip('/')}/v1/{reader.signal}"
    variable, own = reader.first(reader.names("ENDPOINT")[0])
    if variable and _is_url(own):
        endpoint = own
    elif variable:
        reader.refuse(
            variable, own, "an http:// or https:// URL with a host, or host:port", repr(without_credentials(endpoint))
        )
    if protocol != "grpc" and "://" not in endpoint:
        return f"http://{endpoint}"
    return endpoint


def _is_url(text: str) -> bool:
    try:
        parts = split(text)
        port = parts.port
    except ValueError:
        return False
    # Without a scheme, as gRPC has it, a port tells an address from any other word.
    known = parts.scheme in ("http", "https") if "://" in text else port is not None
    return bool(known and parts.hostname)


def _headers(reader: _Reader, settings: Settings, protocol: str) -> Mapping[str, str]:
    variable, given = reader.first(*reader.names("HEADERS"))
    found = dict(parse_env_headers(given, liberal=True))
    found.update({name.lower(): value for name, value in (settings.headers or {}).items()})
    allowed = _METADATA_VALUE if protocol == "grpc" else _HEADER_VALUE
    for name, value in list(found.items()):
        if name in _OURS or not _HEADER_NAME.fullmatch(name) or not allowed.fullmatch(value):
            # The value may be a secret: never shown.
            reader.complaints.append(
                f"the header {name!r} of {variable or 'the option headers'} is not accepted; accepted: a name of letters,"
                f" digits and dashes that is not the protocol's own, and a value of printable characters. Left out"
            )
            del found[name]
    return found


def _provider_name(reader: _Reader, protocol: str) -> str:
    kind = "GRPC" if protocol == "grpc" else "HTTP"
    prefix = f"OTEL_PYTHON_EXPORTER_OTLP_{kind}_"
    variable, given = reader.first(
        f"{prefix}{reader.signal.upper()}_CREDENTIAL_PROVIDER",
        f"{prefix}CREDENTIAL_PROVIDER",
    )
    if given and not _provider(given):
        offered = sorted(entry.name for entry in entry_points(group=_PROVIDERS))
        reader.refuse(variable, given, ", ".join(offered) or "none, no installed package offers one", "none")
        return ""
    return given


def _provider(name: str) -> list[EntryPoint]:
    return list(entry_points(group=_PROVIDERS, name=name)) if name else []


def _one_of(accepted: tuple[str, ...]) -> Callable[[str], str]:
    def parse(given: str) -> str:
        if given.lower() not in accepted:
            raise ValueError
        return given.lower()

    return parse


def _flag(given: str) -> bool:
    return _one_of(("true", "false"))(given) == "true"


def _seconds(given: str) -> float:
    seconds = float(given)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError
    return seconds


def _file(given: str) -> str:
    with Path(given).open("rb"):
        return given


def _exporter_version() -> str:
    try:
        return version("opentelemetry-exporter-otlp-proto-http")
    except PackageNotFoundError:
        return "unknown"
