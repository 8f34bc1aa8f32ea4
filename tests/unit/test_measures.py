"""How metrics of chunks and of ranks make those of the whole, and what is refused for its shape."""

import pickle

import pytest
import torch

from rl_lightning.errors import UserError
from rl_lightning.measures import Mean, Seconds, Sum, merged, packed, unpacked
from rl_lightning.shapes import require
from tests.checks import holds_only_for


def all_are_means(parts, side_by_side=False):
    return merged([{name: float(value) for name, value in part.items()} for part in parts], side_by_side)


def absent_is_zero(parts, side_by_side=False):
    names = {name for part in parts for name in part}
    return merged([{name: part.get(name, 0.0) for name in names} for part in parts], side_by_side)


def always_in_turn(parts, side_by_side=False):
    return merged(parts)


PARTS = [
    {"failures": Sum(3), "share": Mean(1, 2), "time": Seconds(2.0), "same": 0.1, "own": torch.tensor(4.0)},
    {"failures": Sum(1), "share": Mean(5, 8), "time": Seconds(4.0), "same": 0.1, "own": 2},
    {"share": Mean(0, 0), "same": 0.1, "alone": 7.0},
]


@holds_only_for(
    merged, all_are_means=all_are_means, absent_is_zero=absent_is_zero, always_in_turn=always_in_turn
)  # fmt: skip
def test_counts_add_up_shares_are_pooled_and_times_depend(implementation):
    expected = {"failures": 4.0, "share": 0.6, "time": 6.0, "same": 0.1, "own": 3.0, "alone": 7.0}
    assert implementation(PARTS) == expected
    assert implementation(PARTS, side_by_side=True) == expected | {"time": 3.0}
    # Parts may be merged in any grouping: chunks of each rank first, then ranks.
    assert implementation([merged(PARTS[:2]), PARTS[2]]) == expected


def test_a_measure_is_a_number_and_survives_the_way_to_another_process():
    for measure in (Sum(2), Seconds(2.0), Mean(4, 2), Mean(0, 0)):
        copy = pickle.loads(pickle.dumps(measure))
        assert type(copy) is type(measure) and copy == measure and isinstance(copy, float)
    assert merged([{"a": pickle.loads(pickle.dumps(Mean(1, 4)))}, {"a": Mean(3, 4)}]) == {"a": 0.5}
    values, mask = torch.tensor([1.0, torch.nan, 4.0]), torch.tensor([True, False, True])
    assert Mean.of(values, mask) == 2.5 and Mean.of(values > 2, mask) == 0.5


@pytest.mark.parametrize("value", [torch.ones(3), "text", None, [1.0]])
def test_what_is_no_number_is_named(value):
    with pytest.raises(UserError, match="the metric 'rollout/mine' must be one number"):
        merged([{"rollout/mine": value}])


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (torch.zeros(4), None, r"mine must have the shape \(4, 3\), one a token, not \(4,\)"),
        (torch.zeros(4, 1), None, r"not \(4, 1\)"),
        (torch.zeros(4, 3, dtype=torch.long), None, "floating-point type, one a token, not torch.int64"),
        (torch.zeros(4, 3), torch.bool, "torch.bool, one a token, not torch.float32"),
        (1.0, None, r"must be a tensor of shape \(4, 3\), one a token, not a float"),
        (None, None, "not a NoneType"),
    ],
)
def test_another_shape_or_type_is_refused_in_one_line(value, dtype, said):
    with pytest.raises(UserError, match=said) as refused:
        require("mine", value, torch.Size([4, 3]), "one a token", dtype)
    assert "\n" not in str(refused.value)
    require("mine", torch.zeros(4, 3, dtype=dtype or torch.float16), (4, 3), "one a token", dtype)


def test_metrics_come_back_as_what_they_were():
    metrics = {"a": Mean(3.0, 4), "b": Sum(2), "c": Seconds(0.1), "d": 0.3, "e": torch.tensor(0.25)}
    again = unpacked(packed(metrics))
    assert {name: (type(value), float(value)) for name, value in again.items()} == {
        "a": (Mean, 0.75), "b": (Sum, 2.0), "c": (Seconds, 0.1), "d": (float, 0.3), "e": (float, 0.25)
    }  # fmt: skip
    other = {"a": Mean(5.0, 1), "b": Sum(1)}
    assert merged([again, other]) == merged([metrics, other]) and merged([again, other])["a"] == 1.6
