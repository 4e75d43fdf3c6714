"""A client of our own to the Redis that arq's asynchronous pool talks to: our threads have no event loop."""

from __future__ import annotations

from typing import Any, Final

from otel_kit.integrations.redis_keys import TIMEOUT

_SHARED: Final = (
    "host", "port", "path", "db", "username", "password", "credential_provider", "ssl_keyfile", "ssl_certfile",
    "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_check_hostname", "ssl_password",
)  # fmt: skip


def own_client(pool: Any) -> Any:
    """A synchronous client to the same server and database.

    Args:
        pool: An `ArqRedis`; also one that asks sentinels for its server.
    """
    import redis.sentinel

    asynchronous = pool.connection_pool
    options = _options(asynchronous.connection_kwargs)
    manager = getattr(asynchronous, "sentinel_manager", None)
    if manager is not None:
        addresses = [(each["host"], each["port"]) for each in map(_address, manager.sentinels)]
        ask: Any = redis.sentinel.Sentinel
        sentinels = ask(addresses, sentinel_kwargs={**_options(manager.sentinel_kwargs), **_BOUNDED})
        options = {name: value for name, value in options.items() if name not in ("host", "port", "path")}
        return sentinels.master_for(asynchronous.service_name, **options, **_BOUNDED)
    kind = {
        "SSLConnection": redis.SSLConnection,
        "UnixDomainSocketConnection": redis.UnixDomainSocketConnection,
    }.get(asynchronous.connection_class.__name__, redis.Connection)
    return redis.Redis(connection_pool=redis.ConnectionPool(kind, 4, **options, **_BOUNDED))


_BOUNDED: Final[dict[str, Any]] = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}


def _options(options: Any) -> dict[str, Any]:
    return {name: options[name] for name in _SHARED if options.get(name) is not None}


def _address(sentinel: Any) -> Any:
    return sentinel.connection_pool.connection_kwargs
