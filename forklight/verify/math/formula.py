r"""Reads formulas of arithmetic into trees: numbers, letters, the four operations, powers, roots, usual functions.

Only what has one reading is read. `1/2x`, `x 2`, `x^10`, `f(x)`, `2\frac{1}{2}` and every command that is not listed
are left to Math-Verify. Pure text work, linear in the text; no SymPy.
"""

from functools import lru_cache

from forklight.verify.math.node import Node
from forklight.verify.math.reader import NotRead, Reader


@lru_cache(maxsize=4096)
def read_formula(text: str) -> Node | None:
    r"""Reads a formula in the common spelling; None if it is anything else, or can be read in two ways.

    Example:
        >>> read_formula("2x").op, read_formula("1/2x"), read_formula("f(x)"), read_formula("x=2")
        ('product', None, None, None)
    """
    try:
        return Reader(text).whole()
    except NotRead:
        return None
