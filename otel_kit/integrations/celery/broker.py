"""The broker's own Redis traffic (polling, acknowledging, restoring), which makes no spans."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from opentelemetry.instrumentation.utils import suppress_instrumentation


def quiet_client(wrapped: Callable[..., Any], _channel: Any, args: Any, kwargs: Any) -> Any:
    """The broker's own Redis traffic (polling, acknowledging, restoring) makes no spans: send and process tell it."""
    made = wrapped(*args, **kwargs)
    if not isinstance(made, type):
        return functools.partial(_silenced(made.func), *made.args, **made.keywords)
    return _silenced(made)


@functools.lru_cache(maxsize=8)
def _silenced(client: Any) -> Any:
    def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        with suppress_instrumentation():
            return client.execute_command(self, *args, **options)

    def pipeline(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = client.pipeline(self, *args, **kwargs)
        run = made.execute

        def execute(*run_args: Any, **run_kwargs: Any) -> Any:
            with suppress_instrumentation():
                return run(*run_args, **run_kwargs)

        made.execute = execute
        return made

    return type(client.__name__, (client,), {"execute_command": execute_command, "pipeline": pipeline})
