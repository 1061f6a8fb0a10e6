r"""Values of rational functions modulo a prime: equal functions have equal ones, others only by chance.

Two different polynomials of degree d agree at a point with probability d/2^61 (Schwartz 1980, Zippel 1979). `i` is a
root of -1; pi and e are letters.
"""

import math
from functools import lru_cache
from hashlib import blake2b

from forklight.verify.math.arithmetic import Untold, natural, whole
from forklight.verify.math.node import Node

PRIME = 2**61 - 31
"""Of the form 4k + 1, so that -1 has a root: 7 is no square."""
_ROOT = pow(7, (PRIME - 1) // 4, PRIME)


@lru_cache(maxsize=4096)
def residues(node: Node) -> tuple[int, int]:
    """The values at two fixed points.

    Raises:
        Untold: it is no rational function, or not defined at a point.
    """
    return _residue(node, 0), _residue(node, 1)


def _residue(node: Node, point: int) -> int:
    """The value of a rational function at one of the points."""
    match node.op:
        case "number":
            return node.value.numerator * _inverse(node.value.denominator) % PRIME
        case "symbol":
            return _letter(node.name, point)
        case "constant":
            return _ROOT if node.name == "i" else _letter(f"\\{node.name}", point)
        case "sum":
            return sum(_residue(part, point) for part in node.args) % PRIME
        case "minus":
            return -_residue(node.args[0], point) % PRIME
        case "product":
            return _residue(node.args[0], point) * _residue(node.args[1], point) % PRIME
        case "quotient":
            return _residue(node.args[0], point) * _inverse(_residue(node.args[1], point)) % PRIME
        case "power":
            exponent = whole(node.args[1])
            base = _residue(node.args[0], point)
            return pow(base if exponent > 0 else _inverse(base), abs(exponent), PRIME)
        case "factorial":
            return math.factorial(natural(node.args[0])) % PRIME
        case "binomial":
            above, below = _residue(node.args[0], point), natural(node.args[1])
            falling = math.prod(above - number for number in range(below))
            return falling * _inverse(math.factorial(below)) % PRIME
        case _:
            raise Untold


def _inverse(value: int) -> int:
    if value % PRIME == 0:
        raise Untold
    return pow(value, -1, PRIME)


@lru_cache(maxsize=1024)
def _letter(name: str, point: int) -> int:
    return int.from_bytes(blake2b(f"{point}{name}".encode(), digest_size=8).digest()) % PRIME
