# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn times of a trace's clock into real time."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Mapping


def format_real_time(time_ns: int, manifest: Mapping[str, Any]) -> str | None:
    """Return TIME_NS of the trace's clock as ISO 8601 in UTC; None when MANIFEST does not have the clock's offset."""
    offset = manifest.get("clock_offset_ns")
    if offset is None:
        return None
    return datetime.fromtimestamp((time_ns + offset) / 1e9, timezone.utc).isoformat(timespec="milliseconds")
