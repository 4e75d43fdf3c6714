"""The broker's own Redis traffic (polling, acknowledging, heartbeats), which makes no spans: send and process tell it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from opentelemetry.instrumentation.utils import suppress_instrumentation


def quiet(wrapped: Callable[..., Any], _broker: Any, args: Any, kwargs: Any) -> Any:
    """Around what makes a function of one of the broker's commands."""
    command = wrapped(*args, **kwargs)

    @functools.wraps(command)
    def silenced(*command_args: Any, **command_kwargs: Any) -> Any:
        with suppress_instrumentation():
            return command(*command_args, **command_kwargs)

    return silenced
