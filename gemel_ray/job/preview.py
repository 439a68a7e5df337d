"""What `gemel-ray link --dry-run` says: the plan of a job, and how long it may take."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gemel_ray.config import Config
from gemel_ray.job import results
from gemel_ray.job.inputs import unchanged
from gemel_ray.job.selection import Selection
from gemel_ray.object_folder import Place, folder_at
from gemel_ray.sizing import fitted


def preview(config: Config, inputs: Sequence[str], output: Place, selection: Selection) -> str:
    """The plan in words: inputs, what is done, where it would run, and an estimate where there is one."""
    config = fitted(config, "offline")
    total, done = selection.total(inputs, unchanged(output, inputs, config.input)), _done(output)
    known = f"{total:,} documents" if total else "an unknown number of documents"
    lines = [f"{len(inputs):,} files with {known}, of which {done:,} are in {output} already"]
    lines.append(f"Ray: {config.offline.address}")
    for segment in config.offline.segments:
        lines.append(
            f"  {segment.workers} x [{' '.join(segment.stages)}]: {segment.cpus:g} CPUs and "
            f"{segment.gpus:g} GPUs each, {segment.batch} documents at once, {segment.overlap} times over"
        )
    lines.append(f"language model: {config.models.language}, {config.generate.beams} beams, "
                 f"{config.retrieve.demonstrations} demonstrations")  # fmt: skip
    lines.append(_estimate(output, max(0, total - done) if total else None))
    return "\n".join(lines)


def _done(output: Place) -> int:
    """Without mending anything."""
    return results.number(output)


def _estimate(output: Place, left: int | None) -> str:
    at = folder_at(output)
    if left == 0:
        return "nothing is left to do"
    if left is None or "progress.json" not in at.names():
        return "no estimate: link --limit 500 first, or ask gemel-ray plan with the rates of gemel-ray bench"
    last = json.loads(at.read("progress.json"))
    done, seconds = last["documents"]["done"], last["seconds"]
    if not done:
        return "no estimate: the last run did nothing"
    return (
        f"about {left * seconds / done / 60:,.0f} minutes, at the pace of the last run here "
        f"({done / seconds:.1f} documents a second, start-up included)"
    )
