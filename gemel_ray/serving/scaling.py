"""How much work there is, in mentions: the unit in which callers take turns and replicas are added."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MENTIONS = "mentions"  # what a replica calls its count, told to Serve's autoscaler
_CHARACTERS = 40  # of a text for each mention that is looked for


def mentions(document: pa.Table) -> int:
    """Of a document anywhere in the line of stages: its rows, once each mention has one; those found, or
    given; else how many a text of its length may name."""
    if "mention" in document.column_names:
        return max(1, len(document))
    for column in ("mentions", "given"):
        if column in document.column_names and document[column][0].is_valid:
            return max(1, pc.sum(pc.list_value_length(document[column])).as_py() or 0)
    return 1 + len(document["text"][0].as_py() or "") // _CHARACTERS


def by_mentions(context: Any) -> tuple[float, dict[str, Any]]:
    """Serve's autoscaling policy: replicas by the mentions inside them, where Serve's own counts documents. A
    document that waits for a replica counts as one."""
    counted = (context.aggregated_metrics or {}).get(MENTIONS)
    if not counted:  # nobody has counted yet
        return context.target_num_replicas, {}
    inside = sum(counted.values()) + context.total_queued_requests
    return inside / context.config.target_ongoing_requests, {}
