"""Every option, once: keyword, environment variable, default, what is accepted, meaning.

A wrong keyword is a mistake in code and raises `ConfigurationError` at once. A wrong environment variable is a mistake in
a running deployment: it must not keep a service from starting, so it is named in one log line and the default is used,
as the OpenTelemetry specification asks for its own variables.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

_logger = logging.getLogger(__name__)

PROTOCOLS = ("http/protobuf", "grpc")
LEVELS = ("debug", "info", "warning", "error", "critical")
#: Seconds; the product promises to notice a lost job within a minute.
DEFAULT_LEASE_TTL = 20.0
QUEUE_METRICS = ("lease", "always", "off")
JOB_TRACES = ("auto", "parent", "link")


class ConfigurationError(ValueError):
    """An option was given a value that it does not take. The message names the option, the value and what is accepted."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option: where it comes from and what it takes.

    Attributes:
        variable: Environment variable, or ``""`` where only the keyword exists.
        accepts: What is accepted, as words for an error message.
        parse: Turns what was given (text from the environment, anything from a keyword) into the value, or raises
            ``ValueError`` or ``TypeError``.
        meaning: One sentence for the documentation.
    """

    variable: str
    accepts: str
    parse: Callable[[Any], Any]
    meaning: str


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _url(value: Any) -> str:
    text = _text(value)
    # Without a scheme, as gRPC has it; whether TLS is used is OTEL_EXPORTER_OTLP_INSECURE's to say then.
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if "://" not in text and parts.port is None:
        raise ValueError
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError
    _ = parts.port  # raises ValueError for a port that is none
    return text


def _one_of(*accepted: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        text = _text(value).lower()
        if text not in accepted:
            raise ValueError
        return text

    return parse


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(",")
    return tuple(_text(item) for item in value if not (isinstance(item, str) and not item.strip()))


def _seconds(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    seconds = float(value)
    if not 0 < seconds <= 86_400:
        raise ValueError
    return seconds


def _milliseconds(value: Any) -> float:
    # The specification's variables are milliseconds; our keywords are seconds. Only text comes from a variable.
    return _seconds(float(value) / 1000 if isinstance(value, str) else value)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = _text(value).lower()
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _switch(value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("on", "off"):
        return value.strip().lower() == "on"
    return _flag(value)


_SIZE_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _size(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    found = re.fullmatch(r"(\d{1,15})\s*([a-z]*)", str(value).strip(), re.IGNORECASE)
    if found is None or found[2].upper() not in _SIZE_UNITS:
        raise ValueError
    size = int(found[1]) * _SIZE_UNITS[found[2].upper()]
    if not 2**20 <= size <= 2**40:
        raise ValueError
    return size


def _path(value: Any) -> str:
    text = _text(os.fspath(value))
    if not os.path.isabs(os.path.expanduser(text)):  # noqa: PTH111, PTH117  # text in, text out
        raise ValueError
    return text


def _level(value: Any) -> str:
    text = _one_of(*LEVELS, "notset", "warn", "fatal")(value)
    return {"notset": "debug", "warn": "warning", "fatal": "critical"}.get(text, text)


def _pairs(value: Any) -> Mapping[str, str]:
    if isinstance(value, Mapping):
        return {_text(name): _text(text) for name, text in value.items()}
    raise TypeError


def _leases(value: Any) -> str:
    text = _text(value)
    if text.lower() in ("on", "off"):
        return text.lower()
    if re.match(r"(redis|rediss|unix)://", text) is None:
        raise ValueError
    return text


def _lease_ttl(value: Any) -> float:
    ttl = _seconds(value)
    if not 1 <= ttl <= _LONGEST_LEASE:
        raise ValueError
    return ttl


def _timezone(value: Any) -> str:
    text = _text(value)
    if text.lower() != "local":
        try:
            ZoneInfo(text)
        except Exception:  # noqa: BLE001 - a path, an empty name or a directory raise whatever the file system says
            raise ValueError from None
    return text


def _name_limit(value: Any) -> int:
    if isinstance(value, bool) or re.fullmatch(r"\d{1,5}", str(value).strip()) is None:
        raise ValueError
    if not 1 <= int(value) <= _MOST_NAMES:
        raise ValueError
    return int(value)


_MOST_NAMES = 10_000
_LONGEST_LEASE = 3600.0
_FLAG = "true or false"
_SIZE = "bytes, or a number with KiB, MiB or GiB; from 1 MiB to 1 TiB"
_URL = "an http:// or https:// URL with a host, or host:port"
_SECONDS = "seconds, more than 0 and at most 86400"
_EXPORTERS = "a comma-separated list of exporter names: otlp, console, none, or one that an installed package offers"


def _option(default: Any, variable: str, accepts: str, parse: Callable[[Any], Any], meaning: str) -> Any:
    return field(default=default, metadata={"option": Option(variable, accepts, parse, meaning)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `otel_kit.configure` was asked for. Durations are seconds."""

    service_name: str | None = _option(
        None, "OTEL_SERVICE_NAME", "a name that is not empty", _text, "The service's name, `service.name`."
    )
    service_namespace: str | None = _option(
        None, "", "a name that is not empty", _text, "What the service belongs to, `service.namespace`."
    )
    service_version: str | None = _option(
        None, "", "a version that is not empty", _text, "The deployed version, `service.version`."
    )
    environment: str | None = _option(
        None, "", "a name that is not empty", _text, "`deployment.environment.name`, for example `production`."
    )
    endpoint: str | None = _option(
        None,
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        _URL,
        _url,
        "Where the collector listens; unset: `http://127.0.0.1:4318`, with gRPC `http://127.0.0.1:4317`.",
    )
    protocol: str = _option(
        "http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL", " or ".join(PROTOCOLS), _one_of(*PROTOCOLS), "How OTLP travels."
    )
    headers: Mapping[str, str] | None = _option(
        None,
        "",
        "a mapping of header names to values",
        _pairs,
        "Headers for every OTLP request (OTEL_EXPORTER_OTLP_HEADERS).",
    )
    traces_exporter: tuple[str, ...] = _option(("otlp",), "OTEL_TRACES_EXPORTER", _EXPORTERS, _names, "Where spans go.")
    metrics_exporter: tuple[str, ...] = _option(
        ("otlp",), "OTEL_METRICS_EXPORTER", _EXPORTERS, _names, "Where metrics go."
    )
    logs_exporter: tuple[str, ...] = _option(("otlp",), "OTEL_LOGS_EXPORTER", _EXPORTERS, _names, "Where logs go.")
    metric_interval: float = _option(
        10.0,
        "OTEL_METRIC_EXPORT_INTERVAL",
        f"{_SECONDS} (the variable: milliseconds)",
        _milliseconds,
        "Time between exports of metrics.",
    )
    shutdown_timeout: float = _option(
        5.0,
        "OTEL_KIT_SHUTDOWN_TIMEOUT",
        _SECONDS,
        _seconds,
        "How long the end of the process may wait for the last export, all signals together.",
    )
    spool: bool = _option(
        True,
        "OTEL_KIT_SPOOL",
        "on or off",
        _switch,
        "Keep on disk what the collector cannot take, and send it when it can; off: in memory only, and lost at the end.",
    )
    spool_dir: str | None = _option(
        None,
        "OTEL_KIT_SPOOL_DIR",
        "an absolute path to a directory of the user's own",
        _path,
        "Where that is; unset: `otel-kit` in `$XDG_STATE_HOME`, else `~/.local/state/otel-kit`.",
    )
    spool_bytes: int = _option(
        64 * 2**20,
        "OTEL_KIT_SPOOL_BYTES",
        _SIZE,
        _size,
        "How much of the disk one service takes; the oldest goes first. Nothing is kept for longer than 5 hours.",
    )
    queue_bytes: int = _option(
        16 * 2**20,
        "OTEL_KIT_QUEUE_BYTES",
        _SIZE,
        _size,
        "Memory that waiting spans, and as much again that waiting log records, may hold.",
    )
    disabled: bool = _option(False, "OTEL_SDK_DISABLED", _FLAG, _flag, "No telemetry at all.")
    disabled_instrumentations: tuple[str, ...] = _option(
        (),
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
        "a comma-separated list of instrumentation names, or *",
        _names,
        "What is installed and yet not wired.",
    )
    capture_logs: bool = _option(
        True, "OTEL_PYTHON_LOG_AUTO_INSTRUMENTATION", _FLAG, _flag, "Export the records of `logging`."
    )
    log_level: str = _option(
        "debug",
        "OTEL_PYTHON_LOG_HANDLER_LEVEL",
        ", ".join(LEVELS),
        _level,
        "Records below it are not exported; what the application's loggers let through is theirs to say.",
    )
    log_code_attributes: bool = _option(
        False, "OTEL_PYTHON_LOG_CODE_ATTRIBUTES", _FLAG, _flag, "File, line and function on every log record."
    )
    redact_keys: tuple[str, ...] = _option(
        (),
        "OTEL_KIT_REDACT_KEYS",
        "a comma-separated list of words",
        _names,
        "More attribute keys whose values are redacted; a key matches when it contains the word.",
    )
    job_trace: str = _option(
        "auto",
        "OTEL_KIT_JOB_TRACE",
        ", ".join(JOB_TRACES),
        _one_of(*JOB_TRACES),
        "Whether a run continues its producer's trace (parent), links to it (link), or as fits (auto).",
    )
    queue_metrics: str = _option(
        "lease",
        "OTEL_KIT_QUEUE_METRICS",
        ", ".join(QUEUE_METRICS),
        _one_of(*QUEUE_METRICS),
        "Whether workers report depth and age of their queues: one of them at a time by a lease in the broker (lease), "
        "each of them without one (always), none (off).",
    )
    leases: str = _option(
        "on",
        "OTEL_KIT_LEASES",
        "on, off, or a redis:// URL",
        _leases,
        "Where workers keep a lease for each running job, so that others see when one dies with its process: in the broker's "
        "own Redis (on), in another one (its URL), nowhere (off).",
    )
    lease_ttl: float = _option(
        DEFAULT_LEASE_TTL,
        "OTEL_KIT_LEASE_TTL",
        "seconds, from 1 to 3600",
        _lease_ttl,
        "How long a job's lease lives without being renewed: about as long a dead worker's job goes unnoticed.",
    )
    timezone: str | None = _option(
        None,
        "OTEL_KIT_TIMEZONE",
        "a name of the IANA database, for example Europe/Berlin, or local",
        _timezone,
        "The zone of cron expressions that name none; unset: the host's.",
    )
    name_limit: int = _option(
        200,
        "OTEL_KIT_NAME_LIMIT",
        "a whole number from 1 to 10000",
        _name_limit,
        "How many names of jobs, queues and steps metrics tell apart; further ones are counted together as `_OTHER`.",
    )


OPTIONS: Mapping[str, Option] = {f.name: f.metadata["option"] for f in fields(Settings)}
_DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in fields(Settings)}


def read(keywords: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Build the settings: a keyword wins over its environment variable, which wins over the default.

    Args:
        keywords: Options by keyword; ``None`` counts as not given.
        environ: The environment, ``os.environ`` when left out.

    Raises:
        ConfigurationError: An unknown keyword, or a keyword's value that is not accepted.
    """
    environ = os.environ if environ is None else environ
    unknown = sorted(set(keywords) - set(OPTIONS))
    if unknown:
        raise ConfigurationError(f"unknown option {unknown[0]!r}; accepted are {', '.join(OPTIONS)}")
    values: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        if keywords.get(name) is not None:
            values[name] = _from_keyword(name, option, keywords[name])
        elif option.variable and environ.get(option.variable, "").strip():
            values[name] = _from_variable(name, option, environ[option.variable])
    return Settings(**values)


def _from_keyword(name: str, option: Option, given: Any) -> Any:
    try:
        return option.parse(given)
    except Exception:  # noqa: BLE001 - an int that no float can hold, or an object of the application's own
        shown = _shown(given)
        raise ConfigurationError(f"option {name}={shown} is not accepted; accepted: {option.accepts}") from None


def _from_variable(name: str, option: Option, given: str) -> Any:
    try:
        return option.parse(given.strip())
    except (ValueError, TypeError):
        default = _DEFAULTS[name]
        _logger.error(
            "otel-kit: %s=%s is not accepted; accepted: %s. Going on with %r",
            option.variable,
            _shown(given),
            option.accepts,
            default,
        )
        return default


_LIMIT = re.compile(r"OTEL_(SPAN|EVENT|LINK|LOGRECORD|ATTRIBUTE)_\w*_LIMIT")


def drop_refused_limits(environ: MutableMapping[str, str] = os.environ) -> None:
    """Name and drop limits that the SDK does not take: it reads some as it is imported, and its import would fail."""
    for variable in [name for name in environ if _LIMIT.fullmatch(name)]:
        given = environ[variable].strip()
        if given and not given.isdecimal():
            _logger.error(
                "otel-kit: %s=%s is not accepted; accepted: a whole number, 0 or more", variable, _shown(given)
            )
            del environ[variable]


#: Characters of a refused value that an error message repeats.
_MOST_SHOWN = 500


def without_credentials(url: str) -> str:
    """A URL as it may be shown: without user and password."""
    return re.sub(r"://\S*@", "://", url)


def _shown(given: Any) -> str:
    """A refused value as it may be shown: of a mapping the names, which may be headers that hold secrets."""
    try:
        if isinstance(given, Mapping):
            return repr(dict.fromkeys(given, "..."))[:_MOST_SHOWN]
        # Cut only afterwards: half of a user's password would not be recognised.
        return without_credentials(repr(given)[: 20 * _MOST_SHOWN])[:_MOST_SHOWN]
    except Exception:  # noqa: BLE001 - an object of the application's own
        return f"<{type(given).__qualname__}, whose repr() fails>"
