"""Rewards with faults, for tests; named by their dotted paths."""

import time


def every_third(response, metadata):
    """Raise, hang or return no number for some responses, by their length; else the length."""
    kind = len(response) % 6
    if kind == 0:
        raise RuntimeError("no reward for you")
    if kind == 1:
        return float("nan")
    if kind == 2 and len(response) == 2:
        time.sleep(60)
    return float(len(response))


def always(response):
    """Raise."""
    raise RuntimeError("the grader is out of order")
