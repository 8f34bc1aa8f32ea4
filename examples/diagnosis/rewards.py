"""Rewards that teach something else than they were meant to."""

from __future__ import annotations


def boxed(response: str, answer: str) -> float:
    r"""Return 1 if the response holds the answer in ``\boxed{}``, which the embedded policy never writes: all rewards are 0."""
    return float(f"\\boxed{{{answer}}}" in response)


def steps(response: str) -> float:
    """Return the number of steps that a response claims to have made, one a semicolon, whether they lead anywhere or not."""
    return float(response.count(";"))
