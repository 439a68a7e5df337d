"""The errors of this package. Each is also the built-in error that it resembles."""


class GemelError(Exception):
    """The base class: catch this to catch them all."""


class Mistake(GemelError, ValueError):
    """An error that the user can correct: in a file, a row, an option. Its text says which and how. A
    library's ValueError is not a Mistake: it is a bug."""


class WorkspaceError(Mistake):
    """The folder is not a workspace, or was made with other models or vectors than those configured now."""


class GraphError(GemelError, ValueError):
    """Stages do not fit together, found when the graph is built; or a stage broke its contract."""


class Stopped(GemelError, RuntimeError):
    """The job could not continue. What is written stays, and the same command resumes."""

    status = 1  # exit status of the command


class Terminated(Stopped):
    """Stopped by SIGTERM, as a cluster's scheduler sends it."""

    status = 143
