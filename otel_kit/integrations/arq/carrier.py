"""Our headers inside a serialized job: one key more beside arq's own, which a worker without the kit never looks at."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Mapping
from typing import Any, Final

#: The key. arq's own are ``t``, ``f``, ``a``, ``k`` and ``et``.
KEY: Final = "otel"

Serializer = Callable[[dict[str, Any]], bytes]
Deserializer = Callable[[bytes], Any]


def writing(headers: Mapping[str, str], serializer: Serializer | None, deserializer: Deserializer | None) -> Serializer:
    """A serializer that sends ``headers`` along with each job.

    Args:
        headers: What to send.
        serializer: The application's own; None stands for pickle, as in arq.
        deserializer: Its counterpart, where the producer knows it.
    """
    chosen = serializer or pickle.dumps
    if serializer is not None and not _takes_our_key(serializer, deserializer):
        return chosen

    def serialize(job: dict[str, Any]) -> bytes:
        try:
            return chosen({**job, KEY: dict(headers)})
        except Exception:  # noqa: BLE001 - one that knows only arq's keys; what fails without ours too is the caller's
            return chosen(job)

    return serialize


@functools.lru_cache(maxsize=32)
def _takes_our_key(serializer: Serializer, deserializer: Deserializer | None) -> bool:
    """Whether a job with our key comes back from them: a strict schema would turn every job away in its worker."""
    if deserializer is None:
        return True
    try:
        deserializer(serializer({"t": None, "f": "otel", "a": (), "k": {}, "et": 0, KEY: {}}))
    except Exception:  # noqa: BLE001 - whatever it says, it does not take it
        return False
    return True


def reading(deserializer: Deserializer | None, found: Callable[[object], None]) -> Deserializer:
    """A deserializer that hands our headers of each job, or whatever stands in their place, to ``found``."""
    chosen: Deserializer = deserializer or pickle.loads

    def deserialize(data: bytes) -> Any:
        job = chosen(data)
        if isinstance(job, Mapping):
            found(job.get(KEY))
        return job

    return deserialize
