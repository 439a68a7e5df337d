"""The Ray job whose driver this process is, where `ray job submit` or KubeRay started it."""

from __future__ import annotations

import json
import os
import time

from gemel_ray.errors import Mistake

_ENDED = 60.0  # seconds in which Ray ends the process of a stopped job

MISTAKES = (Mistake, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def stop_mistaken() -> None:
    """Stop the job where GEMEL_RAY_STOP_MISTAKES asks for it: the same command would be refused again.

    KubeRay (1.7.0) restarts a failed job, each time with a whole cluster, and deletes the log of the attempt
    before, whatever the exit status. It does not restart a stopped job.
    """
    job = _submission()
    if job is None or os.environ.get("GEMEL_RAY_STOP_MISTAKES") != "1":
        return
    from ray.job_submission import JobSubmissionClient

    try:
        JobSubmissionClient().stop_job(job)
    except (OSError, RuntimeError):  # away, or it refuses: then the job fails
        return
    time.sleep(_ENDED)


def _submission() -> str | None:
    job_config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    job: str | None = job_config.get("metadata", {}).get("job_submission_id")
    return job
