"""The policy objectives that a config can name; each file holds the formulas and the classes of one family.

Clip ranges of different ratios have different names (`clip`, `sequence_clip`, `weight_clip`). Where one config changes
the class that another config names, jsonargparse keeps the arguments that both classes have; a range of one kind of
ratio fits no other kind.
"""

from forklight.algo.objectives.archer import Archer
from forklight.algo.objectives.base import Objective
from forklight.algo.objectives.cispo import Cispo
from forklight.algo.objectives.clipped import Dapo, DrGrpo, Grpo
from forklight.algo.objectives.covariance import ClipCov, KlCov
from forklight.algo.objectives.entropy_shaped import EntropyShaped
from forklight.algo.objectives.gspo import Gspo, GspoToken
from forklight.algo.objectives.stare import Stare

__all__ = [
    "Archer",
    "Cispo",
    "ClipCov",
    "Dapo",
    "DrGrpo",
    "EntropyShaped",
    "Grpo",
    "Gspo",
    "GspoToken",
    "KlCov",
    "Objective",
    "Stare",
]
