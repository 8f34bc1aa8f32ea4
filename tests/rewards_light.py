"""Reward functions for tests in a file of their own, which reward workers import in no time."""

import time


def even_characters(*, response):
    """Return 1 for a text of an even number of characters."""
    return float(len(response) % 2 == 0)


def starts_with_a_hash(response):
    """Return 1 for a text that begins as the answers of the chain sums do."""
    return float(response.startswith("#"))


def sum_of_digits(*, response, modulus=100):
    """Return the sum of a text's digits, up to a modulus: few texts have equal ones."""
    return float(sum(map(int, filter(str.isdigit, response))) % modulus)


def touch(*, response, file, seconds=0.0):
    """Leave a file behind that shows that this ran, and take some time; return 1."""
    with open(file, "w"):
        time.sleep(seconds)
        return 1.0


def fails_on_some(response):
    """Return the length in characters; raise where five divides it."""
    if len(response) % 5 == 0:
        raise RuntimeError("no reward for you")
    return float(len(response))


def right(response, answer):
    """Return 1 for a response that ends as the answers of the chain sums do, with the right one."""
    return float(response.endswith(f"#{answer}"))


def brief(response):
    """Return a number that is larger for shorter texts."""
    return -float(len(response))


def wordy(response):
    """Return a number that is larger for longer texts, and for more terms."""
    return float(response.count(";")) + 0.01 * len(response)
