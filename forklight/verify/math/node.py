"""The tree of a formula."""

from fractions import Fraction
from typing import NamedTuple


class Node(NamedTuple):
    """A formula: an operation and what it is applied to."""

    op: str
    """`number`, `symbol`, `constant`, `sum`, `product`, `minus`, `quotient`, `power`, `root`, `call`, `log`,
    `factorial`, `binomial` or `absolute`."""
    args: tuple["Node", ...] = ()
    name: str = ""
    """Of a symbol, constant or function."""
    value: Fraction = Fraction(0)
    """Of a number."""
