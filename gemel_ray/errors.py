"""The root of what this package raises. Each error is also the built-in one that it is like."""


class GemelError(Exception):
    """Catch this to catch them all."""


class Mistake(GemelError, ValueError):
    """What whoever asked can put right: a file, a row, an option. Its text says which and how. A ValueError
    of a library is none of these: it is a fault of ours."""


class WorkspaceError(Mistake):
    """The folder is not a workspace, or was made with something else than what is asked of it now."""


class GraphError(GemelError, ValueError):
    """Stages do not fit together, which is said when the graph is built; or one of them broke its promise."""


class Stopped(GemelError, RuntimeError):
    """The job could not go on. What is written stays, and the same command continues from there."""

    status = 1  # of the command


class Terminated(Stopped):
    """By SIGTERM, as a cluster's scheduler sends it."""

    status = 143
