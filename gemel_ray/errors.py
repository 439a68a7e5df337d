"""The root of what this package raises. Each error is also the built-in one that it is like."""


class GemelError(Exception):
    """Catch this to catch them all."""
