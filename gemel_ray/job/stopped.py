"""What the command line must know of jobs without importing anything else."""


class Stopped(RuntimeError):
    """The job could not go on. What is written stays, and the same command continues from there."""

    status = 1  # of the command


class Terminated(Stopped):
    """By SIGTERM, as a cluster's scheduler sends it."""

    status = 143
