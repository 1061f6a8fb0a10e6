"""The policy objectives that a config can name: a loss per token, and how the token losses become one number.

Ranges of different ratios have different names (`clip`, `sequence_clip`, `weight_clip`): where one config changes the
class of another, arguments that the new class knows by name are kept, and no range fits another kind of ratio.
"""

from math import isfinite

from torch import Tensor

from forklight.algo.covariance import CovarianceTokens
from forklight.algo.covariance_losses import clip_cov_loss, kl_cov_loss
from forklight.algo.entropy_losses import dual_token_loss, entropy_shaped_advantages
from forklight.algo.losses import ClipRange, cispo_loss, clipped_loss
from forklight.algo.objective import Objective
from forklight.algo.sequence_losses import gspo_loss, gspo_token_loss
from forklight.algo.types import TokenBatch, TokenLoss


class _Clipped(Objective):
    """The clipped surrogate, whatever becomes of its sum."""

    separable = True

    def __init__(self, clip: ClipRange) -> None:
        self.clip = clip

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `clipped_loss`."""
        return clipped_loss(*self._terms(tokens), self.clip)


class Dapo(_Clipped):
    """Clipped surrogate, mean over tokens: arXiv 2503.14476; with forking tokens, arXiv 2506.01939, Eq. 6.

    Args:
        clip: range of the ratio.
    """

    def __init__(self, clip: ClipRange = ClipRange()) -> None:  # noqa: B008  a frozen value
        super().__init__(clip)


class Grpo(_Clipped):
    """Clipped surrogate, mean over sequences of the mean over tokens: arXiv 2402.03300, Eq. 3.

    Args:
        clip: range of the ratio.
    """

    aggregate = "sequence"

    def __init__(self, clip: ClipRange = ClipRange(0.2, 0.2)) -> None:  # noqa: B008
        super().__init__(clip)


class DrGrpo(_Clipped):
    """Clipped surrogate, summed and divided by sequences times the length limit: arXiv 2503.20783.

    The paper also leaves out the standard deviation of the advantages, which is a setting of its own.

    Args:
        clip: range of the ratio.
    """

    aggregate = "constant"

    def __init__(self, clip: ClipRange = ClipRange(0.2, 0.2)) -> None:  # noqa: B008
        super().__init__(clip)


class Gspo(Objective):
    """One ratio per sequence, the geometric mean over its kept tokens: arXiv 2507.18071, Eq. 5.

    Args:
        sequence_clip: range of the sequences' ratios, which stay much nearer to 1 than those of tokens.
    """

    aggregate = "sequence"

    def __init__(self, sequence_clip: ClipRange = ClipRange(3e-4, 4e-4)) -> None:  # noqa: B008
        self.sequence_clip = sequence_clip

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `gspo_loss`."""
        return gspo_loss(*self._terms(tokens), tokens.row, tokens.rows, self.sequence_clip)


class GspoToken(Gspo):
    """GSPO with each token's own gradient, for advantages that differ inside a sequence: arXiv 2507.18071, Eq. 13.

    Args:
        sequence_clip: range of the sequences' ratios.
    """

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `gspo_token_loss`."""
        return gspo_token_loss(*self._terms(tokens), tokens.row, tokens.rows, self.sequence_clip)


class Cispo(Objective):
    """Every token keeps its gradient, its weight is capped: arXiv 2506.13585, Eq. 4.

    Args:
        weight_clip: range of the weight; by default at most 5 and unbounded from below. No dual bound.
    """

    separable = True

    def __init__(self, weight_clip: ClipRange = ClipRange(low=1.0, high=4.0)) -> None:  # noqa: B008
        if weight_clip.dual is not None:
            raise ValueError(
                f"model.objective.weight_clip.dual must be null, CISPO has no such bound; got {weight_clip.dual}"
            )
        self.weight_clip = weight_clip

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `cispo_loss`."""
        return cispo_loss(*self._terms(tokens), self.weight_clip)


class ClipCov(Objective):
    """The clipped surrogate without a few random tokens of high covariance: arXiv 2505.22617, Eqs. 10 to 12.

    Args:
        clip: range of the ratio; the default is that of the authors' recipes, wide because the covariance does the
            clipping.
        share: of the kept tokens, how many lose their gradient.
        low: lowest covariance of these tokens.
        high: highest covariance of these tokens.
    """

    separable = True

    def __init__(
        self,
        clip: ClipRange = ClipRange(1.0, 1.0),  # noqa: B008
        share: float = 0.0002,
        low: float = 1.0,
        high: float = 5.0,
    ) -> None:
        _check_share("share", share)
        if not (isfinite(low) and low < high):
            raise ValueError(f"model.objective.low = {low} must be finite and below model.objective.high = {high}")
        self.clip = clip
        self.covariance = CovarianceTokens(share, low, high)

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `clip_cov_loss`."""
        return clip_cov_loss(*self._terms(tokens), _given(tokens.cov_mask, "cov_mask", self), self.clip)


class KlCov(Objective):
    """No clipping; the tokens of highest covariance are held near the old policy: arXiv 2505.22617, Eqs. 13 and 14.

    Args:
        penalised_share: of the kept tokens, how many are held; the paper's for 7B models (0.0002 for 32B).
        coef: weight of the penalty.
    """

    separable = True
    trains_zero_advantage = True

    def __init__(self, penalised_share: float = 0.002, coef: float = 1.0) -> None:
        _check_share("penalised_share", penalised_share)
        _check_coef("coef", coef)
        self.coef = coef
        self.covariance = CovarianceTokens(penalised_share)

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `kl_cov_loss`."""
        return kl_cov_loss(*self._terms(tokens), _given(tokens.cov_mask, "cov_mask", self), self.coef)


class EntropyShaped(Objective):
    """Clipped surrogate with advantages raised by the entropy: arXiv 2506.14758, Eqs. 5 and 6.

    Args:
        clip: range of the ratio.
        alpha: advantage per nat of entropy; the paper's for GRPO (0.1 for PPO).
        kappa: an advantage is raised by at most its size / kappa; above 1, so that none changes its sign.
    """

    separable = True

    def __init__(self, clip: ClipRange = ClipRange(), alpha: float = 0.4, kappa: float = 2.0) -> None:  # noqa: B008
        _check_coef("alpha", alpha)
        if not (kappa > 1 and isfinite(kappa)):
            raise ValueError(f"model.objective.kappa must be a finite number > 1, got {kappa}")
        self.clip = clip
        self.alpha = alpha
        self.kappa = kappa

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `entropy_shaped_advantages`."""
        entropy = _given(tokens.entropy, "entropy", self)
        advantages = entropy_shaped_advantages(tokens.advantages, entropy, self.alpha, self.kappa)
        return clipped_loss(tokens.logp, tokens.old_logp, advantages, self.trained(tokens), self.clip)


class Archer(Objective):
    """All tokens are trained; forking tokens are clipped less and held less: arXiv 2507.15778 (v2), Eq. 5.

    The paper selects per answer: `selection.scope: sequence`, `rho: 0.2`, `rule: threshold`.

    Args:
        fork_clip: range of the ratio of forking tokens.
        other_clip: that of the other tokens.
        fork_kl: coefficient of the KL (k3) to the reference on forking tokens.
        other_kl: that on the other tokens.
    """

    trains = "eligible"
    separable = True

    def __init__(
        self,
        fork_clip: ClipRange = ClipRange(0.5, 0.5),  # noqa: B008
        other_clip: ClipRange = ClipRange(0.2, 0.2),  # noqa: B008
        fork_kl: float = 0.0,
        other_kl: float = 0.001,
    ) -> None:
        _check_coef("fork_kl", fork_kl)
        _check_coef("other_kl", other_kl)
        self.fork_clip = fork_clip
        self.other_clip = other_clip
        self.fork_kl = fork_kl
        self.other_kl = other_kl
        self.needs_reference = self.trains_zero_advantage = fork_kl > 0 or other_kl > 0

    def token_loss(self, tokens: TokenBatch) -> TokenLoss:
        """See `dual_token_loss`."""
        return dual_token_loss(
            *self._terms(tokens),
            tokens.fork_mask,
            fork_clip=self.fork_clip,
            other_clip=self.other_clip,
            ref_logp=_given(tokens.ref_logp, "ref_logp", self) if self.needs_reference else None,
            fork_kl=self.fork_kl,
            other_kl=self.other_kl,
        )


def _given(values: Tensor | None, name: str, objective: Objective) -> Tensor:
    if values is None:
        raise ValueError(f"{type(objective).__name__} needs {name} of the tokens")
    return values


def _check_share(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"model.objective.{name} must be above 0 and at most 1, got {share}")


def _check_coef(name: str, value: float) -> None:
    if not (value >= 0 and isfinite(value)):
        raise ValueError(f"model.objective.{name} must be a finite number >= 0, got {value}")
