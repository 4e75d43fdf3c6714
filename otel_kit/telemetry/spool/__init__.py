"""Telemetry that could not be delivered, kept until it can be, by this process or another one of the same service.

On disk it is one file per payload, and no database: a file that went bad costs one payload and not all of them, no lock
and no open connection is carried across a fork, and the names alone tell age, items, signal and destination. Nothing is
synced to the disk: what was written outlives the process in the kernel's page cache, which is what a crash or a restart
takes away. A power cut may cost the last files, and the checksum finds those that it left in halves.
"""

from otel_kit.telemetry.spool.disk import DiskSpool
from otel_kit.telemetry.spool.memory import MemorySpool
from otel_kit.telemetry.spool.root import SpoolUnusable, default_root, open_root
from otel_kit.telemetry.spool.store import LIMIT, MAX_AGE, Claim, OnDrop, Store

__all__ = [
    "LIMIT",
    "MAX_AGE",
    "Claim",
    "DiskSpool",
    "MemorySpool",
    "OnDrop",
    "SpoolUnusable",
    "Store",
    "default_root",
    "open_root",
]
