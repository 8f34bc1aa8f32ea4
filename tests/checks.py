"""Tolerances in one place, and tests that are held to be able to fail."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

#: Largest relative difference between two ways to compute the same number.
RELATIVE = {torch.float32: 1e-6, torch.float64: 1e-12}


def assert_same(actual: Any, expected: Any, relative: float | None = None) -> None:
    """Fail unless two tensors agree to the tolerance of their dtype, relative to the largest expected number."""
    actual = torch.as_tensor(actual)
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    tolerance = (RELATIVE[actual.dtype] if relative is None else relative) * max(1e-30, float(expected.abs().max()))
    difference = float((actual - expected).abs().max())
    assert difference <= tolerance, f"differ by {difference:.3g}, more than {tolerance:.3g}"


def holds_only_for(real: Callable[..., Any], **mutants: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a check of an implementation into a test that the real one passes and every mutant fails."""
    implementations = {"real": real, **mutants}

    def decorate(check: Callable[[Callable[..., Any]], None]) -> Callable[..., None]:
        @pytest.mark.parametrize("name", implementations)
        def test(name: str) -> None:
            if name == "real":
                check(real)
            else:
                with pytest.raises(AssertionError):
                    check(implementations[name])

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


def cases(*matrix: Iterable[Any], soon: Callable[..., bool]) -> list[Any]:
    """Return the parameters of all combinations; those that `soon` does not ask for are slow."""
    return [pytest.param(*case, marks=() if soon(*case) else pytest.mark.slow) for case in itertools.product(*matrix)]


def takes_less(seconds: float, call: Callable[[], object], tries: int = 4) -> bool:
    """Tell whether one of a few tries takes less than some seconds: a busy machine makes some of them slow, but hardly all."""
    for _ in range(tries):
        started = time.perf_counter()
        call()
        if time.perf_counter() - started < seconds:
            return True
    return False


def gradient_difference(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return ‖actual − expected‖ / ‖expected‖ over all parameters as one vector."""
    assert actual.keys() == expected.keys()
    squares = sum(float((actual[name].double() - grad.double()).square().sum()) for name, grad in expected.items())
    return (squares / sum(float(grad.double().square().sum()) for grad in expected.values())) ** 0.5
