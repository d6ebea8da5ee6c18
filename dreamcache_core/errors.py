"""The one error of this project."""


class DreamCacheError(ValueError):
    """Something the person at the graph can put right: the message says what is wrong, and what to do."""
