"""The example of a judge over HTTP, beside a server on this machine."""

import math
import threading
import time

import pytest

from examples.judge.server import JudgeServer
from rl_lightning.rewards import Rewarder, RewardSample, RewardSpec


@pytest.fixture
def judge():
    servers = []

    def start(**options):
        servers.append(JudgeServer(**options))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1], f"http://127.0.0.1:{servers[-1].server_address[1]}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def score(url, *responses, timeout_s=30.0, **arguments):
    spec = RewardSpec(
        "examples.judge.judge.judged", arguments={"url": url, "patience_s": 0.05, **arguments}, concurrency=16
    )
    one = Rewarder(spec, timeout_s=timeout_s, max_failed_fraction=1.0)
    started = time.perf_counter()
    scores = one.score([RewardSample("How?", response, None, {}) for response in responses])
    one.close()
    return scores, time.perf_counter() - started


def test_marks_are_read_and_a_judge_that_gives_none_says_nothing_of_the_answer(judge):
    server, url = judge()
    scores, _ = score(url, "yes", "a longer answer", "why?")
    assert scores.total[:2] == [0.7, 0.0] and math.isnan(scores.total[2])
    assert scores.failures == {"judge/no_mark": 1, "none": 1} and scores.inapplicable == {"judged": 1}
    assert scores.notes[2] == {"judged": {"judge": "I would rather not say."}}
    assert server.asked == 3


def test_a_busy_judge_is_asked_again(judge):
    server, url = judge(busy_every=3)
    scores, _ = score(url, *["yes"] * 12)
    assert scores.total == [0.7] * 12
    assert scores.failures["judge/retries"] == server.asked - 12 > 0


def test_many_answers_are_with_the_judge_at_a_time(judge):
    _, url = judge(seconds=1.0)
    scores, seconds = score(url, *["yes"] * 16)
    assert scores.total == [0.7] * 16 and seconds < 12


def test_a_judge_that_is_not_there_or_hangs_costs_the_sample(judge):
    _, url = judge(busy_every=1)
    scores, _ = score(url, "yes", retries=1)
    assert scores.failures == {"judge/retries": 1, "raised": 1}
    _, url = judge(seconds=60.0)
    scores, seconds = score(url, "yes", timeout_s=1.0)
    assert scores.failures == {"timeout": 1} and seconds < 15
