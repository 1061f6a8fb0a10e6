"""Reward shaping by the length of the answer."""

import math


def soft_overlong(length: int, max_length: int, buffer: int, penalty: float = 1.0) -> float:
    """Soft overlong punishment of DAPO (arXiv 2503.14476, Eq. 13): what to add to the reward of one answer.

    With the expected length E = `max_length` - `buffer`: 0 for length <= E, then linear, (E - length) / buffer, down to
    -1 at `max_length`, and -1 beyond it; all times `penalty`.

    Args:
        length: Tokens of the answer, EOS included.
        max_length: The length limit in tokens (`rollout.max_new_tokens`).
        buffer: Tokens before the limit over which the punishment grows (`rollout.overlong_buffer`). 0 turns it off.
        penalty: Size of the full punishment, in units of reward.

    Returns:
        A number in [-penalty, 0].

    Raises:
        ValueError: If a length is negative, the limit is not positive, the buffer exceeds the limit, or the penalty is
            negative or not finite.

    Example:
        >>> soft_overlong(90, max_length=100, buffer=20)
        -0.5
    """
    if length < 0:
        raise ValueError(f"an answer cannot have {length} tokens")
    if max_length <= 0:
        raise ValueError(f"rollout.max_new_tokens must be positive, got {max_length}")
    if not 0 <= buffer <= max_length:
        raise ValueError(
            f"rollout.overlong_buffer must lie in 0 .. {max_length} (rollout.max_new_tokens), got {buffer}"
        )
    if not (math.isfinite(penalty) and penalty >= 0):
        raise ValueError(f"the overlong penalty must be a finite number of at least 0, got {penalty}")
    over = length - (max_length - buffer)
    if buffer == 0 or over <= 0:
        return 0.0
    return -penalty * min(over / buffer, 1.0)
