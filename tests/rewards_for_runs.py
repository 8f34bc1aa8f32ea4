"""A reward that a random policy can earn; named by its dotted path."""


def length(response):
    """Return the length in characters."""
    return float(len(response))
