"""The root of what this package raises. Each error is also the built-in one that it is like."""


class GemelError(Exception):
    """Catch this to catch them all."""


class WorkspaceError(GemelError, ValueError):
    """The folder is not a workspace, or was made with something else than what is asked of it now."""
