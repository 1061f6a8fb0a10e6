r"""Exact arithmetic: the value of a rational constant, within bounds on the work."""

import math
from fractions import Fraction

from forklight.verify.math.formula import read_formula
from forklight.verify.math.node import Node

MAX_POWER = 9999
MAX_FACTORIAL = 300
MAX_BITS = 4000


class Untold(Exception):
    """The value cannot be told here."""


def exact_value(text: str) -> Fraction | None:
    r"""The value of an arithmetic term in the common spelling; None if it is none, irrational or large.

    Example:
        >>> exact_value("2^{5}+1"), exact_value(r"\sqrt{2}"), exact_value("x")
        (Fraction(33, 1), None, None)
    """
    node = read_formula(text)
    try:
        return None if node is None else exact(node)
    except Untold:
        return None


def exact(node: Node) -> Fraction:
    """The value of a rational constant, of at most `MAX_BITS`."""
    match node.op:
        case "number":
            return node.value
        case "factorial":
            return Fraction(math.factorial(natural(node.args[0])))
        case "binomial":
            return Fraction(math.comb(natural(node.args[0]), natural(node.args[1])))
        case "call" | "log" | "symbol" | "constant":
            raise Untold
    parts = [exact(part) for part in node.args]
    match node.op:
        case "minus":
            return -parts[0]
        case "sum":
            return Fraction(sum(parts))
        case "product":
            return parts[0] * parts[1]
        case "quotient" if parts[1]:
            return parts[0] / parts[1]
        case "absolute":
            return abs(parts[0])
        case "power" if parts[1].denominator == 1 and parts[0]:
            bits = max(parts[0].numerator.bit_length(), parts[0].denominator.bit_length())
            if abs(parts[1]) * bits <= MAX_BITS:
                return Fraction(parts[0] ** int(parts[1]))
        case "root" if parts[1] == 2 and parts[0] >= 0:
            roots = math.isqrt(parts[0].numerator), math.isqrt(parts[0].denominator)
            if Fraction(*roots) ** 2 == parts[0]:
                return Fraction(*roots)
    raise Untold


def whole(node: Node) -> int:
    """A whole number of at most `MAX_POWER`."""
    value = exact(node)
    if value.denominator != 1 or abs(value) > MAX_POWER:
        raise Untold
    return int(value)


def natural(node: Node) -> int:
    """A whole number from 0 to `MAX_FACTORIAL`."""
    value = whole(node)
    if not 0 <= value <= MAX_FACTORIAL:
        raise Untold
    return value
