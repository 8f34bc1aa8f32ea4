"""The code of the symbolic process: expressions are evaluated at a few points, to many digits."""

from __future__ import annotations

import signal
import zlib
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Literal

from mpmath import mp, mpf

from rl_lightning.rewards.grading.expression import Expression, Tree, read_expression

Kind = Literal["expression", "equation", "inequality"]
#: A real or complex number of mpmath, which declares no types.
Value = Any

#: Decimal digits: that are computed, that two values must agree to, and below which a value is zero, for values of a common size.
_DIGITS, _AGREE, _ZERO = 60, 40, 30
_LARGEST_SIZE = 2000
_DIGITS_OF_BIT = 0.30103
_LARGEST_EXPONENT, _LARGEST_FACTORIAL = 1_000_000, 1000
_POINTS = 6


class _NoValue(ArithmeticError):
    """The expression has no value at this point, or one that is too large to compare."""


class _OutOfTime(BaseException):
    """Raised by the timer. It is not an Exception, so that no ``except`` in between catches it."""


def result(
    kind: Kind, gold: tuple[str, ...], response: tuple[str, ...], limit_s: float
) -> Literal["equal", "different", "refused", "timeout"]:
    """Return how a comparison ended.

    Args:
        kind, gold, response: see `equal`.
        limit_s: longest time, in seconds of CPU time, so that a busy machine changes no verdict.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    previous = signal.signal(signal.SIGPROF, ring)
    try:
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        same = equal(kind, gold, response)
    except _OutOfTime:
        return "timeout"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    return "refused" if same is None else "equal" if same else "different"


def prepare() -> None:
    """Evaluate an expression, so that mpmath's one-time work is done before the first comparison."""
    equal("expression", ("\\sin 1",), ("\\cos 1",))


def equal(kind: Kind, gold: tuple[str, ...], response: tuple[str, ...]) -> bool | None:
    """Return whether two expressions, or two relations, are equal.

    They are evaluated at points that the names of the variables determine. Two expressions are equal if they agree to 40 digits
    at all points where both have a value, and there are at least two such points. Two equations are equal if their
    differences, left side less right side, are proportional; two inequalities, if they are so by a positive factor. For each
    digit of the largest number on the way, and each zero behind the point of the smallest, they must agree to two digits
    more: ``2^{200} - 1`` is not ``2^{200}``.

    Args:
        kind: of both.
        gold, response: an expression, or the two sides of a relation.

    Returns:
        None if they cannot be read, or have no values to compare.
    """
    read = [read_expression(text) for text in (*gold, *response)]
    sides = [expression for expression in read if expression is not None]
    if len(sides) < len(read):
        return None
    names = sorted(frozenset().union(*(side.variables for side in sides)))
    imaginary = any("i" in _constants(side.tree) for side in sides)
    sizes = [0]
    with mp.workdps(_DIGITS):
        list(_values(sides, names, imaginary, sizes))
    size = max(sizes)
    if size > _LARGEST_SIZE:
        return None
    # A difference may take the size from the digits of a value twice.
    with mp.workdps(_DIGITS + 4 * size):
        values = list(_values(sides, names, imaginary, sizes))
        if len(values) < (2 if names else 1):
            return None
        if kind == "expression":
            return all(_same(first, second, size) for first, second in values)
        return _proportional(values, size, positive=kind == "inequality")


def _proportional(values: list[Value], size: int, positive: bool) -> bool:
    """Return whether the differences of the sides are proportional at all points, and not constant."""
    pairs = [(first - second, third - fourth) for first, second, third, fourth in values]
    zero = mpf(10) ** -(_ZERO + 2 * size)
    if any(abs(one) < zero or abs(other) < zero for one, other in pairs):
        return False
    factor = pairs[0][1] / pairs[0][0]
    constant = all(_same(one, pairs[0][0], size) for one, _ in pairs)
    if constant or (positive and factor <= 0):
        return False
    return all(_same(other, factor * one, size) for one, other in pairs)


def _same(first: Value, second: Value, size: int) -> bool:
    return bool(abs(first - second) <= mpf(10) ** -(_AGREE + 2 * size) * max(mpf(1), abs(first), abs(second)))


def _values(
    sides: list[Expression], names: list[str], imaginary: bool, sizes: list[int]
) -> Iterator[tuple[Value, ...]]:
    """Yield the values of all sides at each point where all of them have one; a real one unless `imaginary`.

    Args:
        sides, names, imaginary: see `equal`.
        sizes: gets, of every number on the way, how many decimal digits its magnitude has on either side of the point.
    """
    for number in range(_POINTS if names else 1):
        point = {name: _coordinate(name, number) for name in names}
        try:
            values = tuple(_evaluate(side.tree, point, sizes) for side in sides)
        except (ArithmeticError, ValueError):
            continue
        if names and not imaginary:
            if any(abs(mp.im(value)) > mpf(10) ** -_ZERO for value in values):
                continue
            values = tuple(mp.re(value) for value in values)
        if all(mp.isfinite(value) for value in values):
            yield values


def _coordinate(name: str, number: int) -> Value:
    """Return the value of a variable at a point: positive at the first three points, of either sign at the others."""
    digest = zlib.crc32(f"{name} {number}".encode())
    size = mpf(digest % 9973 + 1000) / 4987 + mp.sqrt(2) / 7
    return -size if number >= 3 and (digest >> 16) % 2 else size


def _constants(tree: Tree) -> set[str]:
    if tree[0] == "name":
        return {tree[1]}
    return set().union(*(_constants(part) for part in tree[1:] if isinstance(part, tuple)))


def _evaluate(tree: Tree, point: dict[str, Value], sizes: list[int]) -> Value:
    operator, *parts = tree
    if operator == "number":
        value = mpf(parts[0].numerator) / parts[0].denominator
    elif operator == "name":
        constants = {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1)}
        value = point[parts[0]] if parts[0] in point else +constants[parts[0]]
    else:
        values = [_evaluate(part, point, sizes) for part in parts]
        if any(abs(value) > mpf(10) ** _LARGEST_EXPONENT for value in values):
            raise _NoValue
        value = _OPERATIONS[operator](*values)
    if value != 0 and mp.isfinite(value):
        sizes.append(int(abs(mp.mag(value)) * _DIGITS_OF_BIT))
    return value


def _power(base: Value, exponent: Value) -> Value:
    if base == 0 and mp.re(exponent) <= 0:
        raise _NoValue
    if base != 0 and abs(exponent) * (1 + abs(mp.ln(abs(base), prec=53))) > _LARGEST_EXPONENT:
        raise _NoValue
    return base ** (int(exponent.real) if mp.isint(exponent) else exponent)


def _root(degree: Value, radicand: Value) -> Value:
    if not mp.isint(degree) or not 2 <= degree <= 1000:
        raise _NoValue
    # An odd root of a negative number is real.
    if mp.im(radicand) == 0 and mp.re(radicand) < 0 and int(degree) % 2:
        return -mp.root(-mp.re(radicand), int(degree))
    return mp.root(radicand, int(degree))


def _call(function: Value, argument: Value) -> Value:
    """Return the value of an unknown function: of no rule, and another for every name."""
    if abs(argument) > _LARGEST_EXPONENT:
        raise _NoValue
    return mp.sin(function * argument + 1) + mp.cos(argument * argument * mp.sqrt(2) + function)


def _factorial(value: Value) -> Value:
    if abs(value) > _LARGEST_FACTORIAL:
        raise _NoValue
    return mp.factorial(value)


def _binomial(whole: Value, part: Value) -> Value:
    if abs(whole) > _LARGEST_FACTORIAL or abs(part) > _LARGEST_FACTORIAL:
        raise _NoValue
    return mp.binomial(whole, part)


def _bounded(function: Callable[..., Value]) -> Callable[[Value], Value]:
    def call(value: Value) -> Value:
        if abs(value) > _LARGEST_EXPONENT:
            raise _NoValue
        return function(value)

    return call


_OPERATIONS: dict[str, Callable[..., Value]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "-": lambda a: -a,
    "^": _power,
    "root": _root,
    "!": _factorial,
    "binom": _binomial,
    "call": _call,
    "abs": abs,
    "floor": lambda a: mp.floor(a),
    "ceil": lambda a: mp.ceil(a),
    "ln": lambda a: mp.log(a),
    "log": lambda base, a: mp.log(a) / mp.log(base),
    "arcsin": _bounded(lambda a: mp.asin(a)),
    "arccos": _bounded(lambda a: mp.acos(a)),
    "arctan": _bounded(lambda a: mp.atan(a)),
    **{
        name: _bounded(lambda a, name=name: getattr(mp, name)(a))
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
    },
}
