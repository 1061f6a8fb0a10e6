"""Values of formulas to 60 digits, and whether two agree at points of all signs."""

import threading
from functools import lru_cache
from itertools import product
from typing import Any

from mpmath import MPContext  # type: ignore[import-untyped]

from forklight.verify.math.arithmetic import MAX_FACTORIAL, MAX_POWER, Untold, natural
from forklight.verify.math.node import Node

MAX_SYMBOLS = 4
"""Letters of formulas that are compared sign by sign."""
MAX_SIZE = 50_000
"""Bits of a value, at most."""
DIGITS = 60
MAX_LOST = 12
"""Decimal digits that a sum may lose; more of them, and nothing is said."""

_CONTEXT = MPContext()
_CONTEXT.dps = DIGITS
_LOCK = threading.Lock()  # the context changes its precision while it works
_TOLERANCE = _CONTEXT.mpf("1e-6")
_EXACT = _CONTEXT.mpf("1e-40")


def same_values(gold: Node, answer: Node, decimal: bool) -> bool | None:
    """Whether two formulas agree; None if the values do not tell.

    Args:
        gold: the formula that is right.
        answer: another.
        decimal: whether constants may differ by 1e-6 of the gold.
    """
    try:
        with _LOCK:
            told = _by_values(gold, answer, decimal)
    except (Untold, ArithmeticError, ValueError):
        return None
    return None if not told and (_unsure(gold) or _unsure(answer)) else told


@lru_cache(maxsize=4096)
def _symbols(node: Node) -> frozenset[str]:
    if node.op == "symbol":
        return frozenset([node.name])
    return frozenset().union(*map(_symbols, node.args)) if node.args else frozenset()


def _by_values(gold: Node, answer: Node, decimal: bool) -> bool | None:
    names = sorted(_symbols(gold) | _symbols(answer))
    if not names:
        return _equal_constants(_Evaluation({}).value(gold), _Evaluation({}).value(answer), decimal)
    agree = True
    signs_of_all = list(product((1, -1), repeat=len(names))) if len(names) <= MAX_SYMBOLS else []
    for signs in signs_of_all[:1] if _counts(gold) or _counts(answer) else signs_of_all:
        for numerator in (7, 19):
            point = {
                name: sign * _CONTEXT.mpf(numerator + 2 * place + numerator * place * place) / 11
                for place, (name, sign) in enumerate(zip(names, signs, strict=True))
            }
            wanted, found = (_Evaluation(point).value(node) for node in (gold, answer))
            near = abs(wanted - found) <= _EXACT * abs(wanted)
            if max(signs) == min(signs) == 1:
                if abs(wanted - found) > _TOLERANCE * abs(wanted):
                    return False
                agree = agree and near
            elif _imaginary(gold) or _imaginary(answer) or _real(wanted) or _real(found):
                agree = agree and near
    return True if agree and len(names) <= MAX_SYMBOLS else None


def _equal_constants(wanted: Any, found: Any, decimal: bool) -> bool | None:
    apart, size = abs(wanted - found), max(abs(wanted), abs(found))
    if wanted and found and apart <= (_TOLERANCE if decimal else _EXACT) * abs(wanted):
        return True
    return None if apart <= _CONTEXT.mpf("1e-25") * max(size, 1) else False


def _real(value: Any) -> bool:
    return bool(abs(_CONTEXT.im(value)) <= _EXACT * abs(value))


@lru_cache(maxsize=4096)
def _counts(node: Node) -> bool:
    """Whether a factorial or binomial stands in it, whose letters are numbers of things."""
    return node.op in ("factorial", "binomial") or any(map(_counts, node.args))


@lru_cache(maxsize=4096)
def _unsure(node: Node) -> bool:
    """Whether it has a logarithm of unknown base: equal for a base that is nobody's is equal for all of them."""
    return (node.op == "call" and node.name == "log") or any(map(_unsure, node.args))


@lru_cache(maxsize=4096)
def _imaginary(node: Node) -> bool:
    return node == Node("constant", name="i") or any(map(_imaginary, node.args))


class _Evaluation:
    """Values at one point."""

    def __init__(self, point: dict[str, Any]) -> None:
        self.point = point

    def value(self, node: Node) -> Any:
        found = self._value(node)
        if found and abs(_CONTEXT.mag(found)) > MAX_SIZE:
            raise Untold
        return found

    def _value(self, node: Node) -> Any:
        match node.op:
            case "number":
                return _CONTEXT.mpf(node.value.numerator) / node.value.denominator
            case "symbol":
                return self.point[node.name]
            case "constant":
                return {"i": _CONTEXT.j, "e": _CONTEXT.e, "pi": _CONTEXT.pi}[node.name] * _CONTEXT.one
        parts = [self.value(part) for part in node.args]
        match node.op:
            case "sum":
                return _sum(parts)
            case "minus":
                return -parts[0]
            case "product":
                return parts[0] * parts[1]
            case "quotient":
                return parts[0] / parts[1]
            case "power":
                return _power(*parts)
            case "root":
                return _root(parts[0], natural(node.args[1]))
            case "log":
                return _log(parts[0]) / _log(parts[1])
            case "absolute":
                return abs(parts[0])
            case "factorial" if abs(parts[0]) <= MAX_FACTORIAL:
                return _CONTEXT.factorial(parts[0])
            case "binomial" if max(map(abs, parts)) <= MAX_FACTORIAL:
                return _CONTEXT.binomial(*parts)
            case "call" if node.name in _CALLS and abs(parts[0]) < 10_000:
                return _CALLS[node.name](parts[0])
        raise Untold


def _sum(parts: list[Any]) -> Any:
    total = sum(parts)
    largest = max(map(abs, parts))
    if total and _CONTEXT.mag(largest) - _CONTEXT.mag(total) > 3.3 * MAX_LOST:
        raise Untold
    return total


def _power(base: Any, exponent: Any) -> Any:
    if not base or abs(exponent) > MAX_POWER:
        raise Untold
    return base**exponent


def _root(value: Any, degree: int) -> Any:
    """The real root where there is one: of -8 the third is -2."""
    if degree < 2:
        raise Untold
    if degree % 2 and _CONTEXT.im(value) == 0 and _CONTEXT.re(value) < 0:
        return -_CONTEXT.root(-_CONTEXT.re(value), degree)
    return _CONTEXT.root(value, degree)


def _log(value: Any) -> Any:
    if not value:
        raise Untold
    return _CONTEXT.log(value)


_CALLS = {
    name: getattr(_CONTEXT, name.replace("arc", "a"))
    for name in ["sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "exp"]
} | {"ln": _log, "log": lambda value: _log(value) / 3}
