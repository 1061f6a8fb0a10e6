"""Which answer tokens carry gradient: the specification, scores, exact ranking, masks."""

from forklight.algo.selection.mask import select
from forklight.algo.selection.spec import ForkSelection

__all__ = ["ForkSelection", "select"]
