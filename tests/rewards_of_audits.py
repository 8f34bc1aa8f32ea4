"""Rewards of the embedded policy's answers, sound and unsound, which a worker imports in no time."""

from rl_lightning.rewards.functions import final_answer


def is_right(response, answer):
    """Knows the truth, and is not trained on."""
    return final_answer(response, answer)


def short(response):
    """Prefers short answers, whatever they say."""
    return -len(response)


def wrong(response, answer):
    """Prefers wrong answers."""
    return -final_answer(response, answer)


def right_and_short(response, answer):
    """Prefers right answers, and among these the short ones."""
    return final_answer(response, answer) - 0.001 * len(response)
