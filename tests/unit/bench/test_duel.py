"""Turns, ratios and what is printed of them."""

import pytest

from examples.bench import meter
from examples.bench.duel import Measured, summary, take_turns
from examples.bench.table import table
from rl_lightning.models.roofline import Limits
from tests.checks import holds_only_for


def step(seconds, tokens=100):
    return {"seconds": seconds, "cpu_seconds": 1 + seconds, "tokens": tokens}


def measured(own=(1.0, 2.0, 4.0), peer=(3.0, 3.0, 20.0), **fields):
    return Measured(
        [step(one) for one in own], [step(one) for one in peer], **({"own_peak": 2e9, "peer_peak": 8e9} | fields)
    )


def ratio_of_medians(name, found, peer, by_token):
    line = summary(name, found, peer, by_token)
    return line | {"ratio": line["peer_s"] / line["own_s"]}


def upside_down(name, found, peer, by_token):
    return summary(name, Measured(found.peer, found.own, found.peer_peak, found.own_peak), peer, by_token)


@holds_only_for(summary, ratio_of_medians=ratio_of_medians, upside_down=upside_down)
def test_the_ratio_is_the_median_of_the_pairs(implementation):
    line = implementation("x", measured(), "trl 1", False)
    assert (line["ratio"], line["ratio_min"], line["ratio_max"]) == (3.0, 1.5, 5.0)
    assert (line["own_s"], line["peer_s"], line["pairs"], line["peer"]) == (2.0, 3.0, 3, "trl 1")
    assert line["tokens_per_s"] == pytest.approx(300 / 7, abs=0.05)
    assert line["memory_ratio"] == 0.25
    assert (line["own_cpu"], line["peer_cpu"]) == (round(10 / 7, 2), round(29 / 26, 2))
    assert line["cpu_ratio"] == 2.0  # of 4/2, 4/3 and 21/5


def as_if_tokens_were_the_same(name, found, peer, by_token):
    for one in found.peer:
        one["tokens"] = found.own[0]["tokens"]
    return summary(name, found, peer, False)


@holds_only_for(summary, as_if_tokens_were_the_same=as_if_tokens_were_the_same)
def test_steps_of_other_tokens_are_compared_by_token(implementation):
    found = Measured([step(1.0, 100)], [step(3.0, 200)], 1e9, 1e9)
    assert implementation("x", found, "trl 1", True)["ratio"] == 1.5


def test_other_work_is_refused():
    with pytest.raises(SystemExit, match="100 tokens beside one of 200"):
        summary("x", Measured([step(1.0, 100)], [step(3.0, 200)], 1e9, 1e9), "trl 1", False)


def test_without_a_peer_there_is_no_ratio():
    line = summary("x", measured(peer=()), None, False)
    unknown = [name for name, value in line.items() if value is None]
    assert unknown == [
        "ratio",
        "ratio_min",
        "ratio_max",
        "peer",
        "memory_ratio",
        "peer_s",
        "cpu_ratio",
        "peer_cpu",
        "roofline",
        "peer_gb",
    ]
    assert line["own_s"] == 2.0


def as_if_only_the_processor(name, found, peer, by_token, limits):
    return summary(name, found, peer, by_token, lambda: Limits(limits().flops, 1e30))


def mean_of_shares(name, found, peer, by_token, limits):
    least = [limits().least_seconds(one["flops"], one["bytes"]) for one in found.own]
    shares = [short / one["seconds"] for short, one in zip(least, found.own, strict=True)]
    return summary(name, found, peer, by_token) | {"roofline": round(sum(shares) / len(shares), 3)}


@holds_only_for(summary, only_the_processor=as_if_only_the_processor, mean_of_shares=mean_of_shares)
def test_the_share_of_the_roofline_is_of_all_the_time(implementation):
    steps = [step(1.0) | {"flops": 50.0, "bytes": 1.0}, step(4.0) | {"flops": 10.0, "bytes": 5.0}]
    found = Measured(steps, [step(1.0)] * 2, 1e9, 1e9)
    line = implementation("x", found, "trl 1", False, lambda: Limits(flops=100.0, bandwidth=10.0))
    assert line["roofline"] == 0.2
    assert summary("x", found, "trl 1", False)["roofline"] is None


class Recorded:
    """A side that writes down when it was asked."""

    def __init__(self, name, diary):
        self.name, self.diary, self.number = name, diary, 0

    def ask(self, command):
        if command == "memory":
            return {"peak": {"A": 1e9, "B": 2e9}[self.name]}
        self.diary.append(self.name)
        self.number += 1
        return step(float(self.number))


def always_in_the_same_order(own, peer, pairs, warm_up):
    found = take_turns(own, peer, 0, warm_up)
    for _ in range(pairs):
        found.own.append(own.ask("step"))
        found.peer.append(peer.ask("step"))
    return found


def counting_the_warm_up(own, peer, pairs, warm_up):
    return take_turns(own, peer, pairs, 0)


@holds_only_for(take_turns, same_order=always_in_the_same_order, counting_the_warm_up=counting_the_warm_up)
def test_the_sides_take_turns(implementation):
    diary = []
    found = implementation(Recorded("A", diary), Recorded("B", diary), 3, 2)
    assert "".join(diary) == "AABB" + "AB" + "BA" + "AB"
    assert [one["seconds"] for one in found.own] == [3, 4, 5] == [one["seconds"] for one in found.peer]
    assert (found.own_peak, found.peer_peak) == (1e9, 2e9)


def test_one_side_goes_on_alone():
    found = take_turns(Recorded("A", []), None, 2, 1)
    assert [one["seconds"] for one in found.own] == [2, 3]
    assert found.peer == []


@pytest.mark.parametrize(("busy", "mine", "others"), [(14.0, 4.0, 2.5), (4.0, 4.0, 0.0), (3.9, 4.0, 0.0)])
def test_what_others_use_is_told(monkeypatch, busy, mine, others):
    """In 4 seconds all cores worked for `busy` CPU seconds, of which this process and its children did `mine`."""
    for name, values in (("busy_seconds", (50.0, 50.0 + busy)), ("cpu_seconds", (7.0, 7.0 + mine))):
        readings = iter(values)
        monkeypatch.setattr(meter, name, lambda *_, readings=readings: next(readings))
    clock = iter((0.0, 4.0))
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(clock))
    found = take_turns(Recorded("A", []), Recorded("B", []), 1, 0)
    assert found.other_cpu == pytest.approx(others)


def test_the_table_has_a_dash_for_what_is_not_known():
    text = table([summary("with", measured(), "trl 1", False), summary("without", measured(peer=()), None, False)])
    _, first, second = text.splitlines()
    assert first.split()[:7] == ["with", "3.00", "1.50", "to", "5.00", "2.000", "3.000"]
    assert first.split()[7:] == ["43", "0.25", "-", "0.00", "trl", "1"]
    assert second.split() == ["without", "-", "-", "2.000", "-", "43", "-", "-", "0.00", "-"]
