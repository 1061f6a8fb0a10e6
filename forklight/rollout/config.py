"""The config of sampling and filtering answers in training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RolloutConfig:
    """How answers are sampled and filtered in training."""

    max_new_tokens: int = 1024
    """Longest answer, in tokens. An answer that has not ended by then is cut (*truncated*)."""
    temperature: float = 1.0
    """Sampling temperature; entropies and ratios are those of logits divided by it."""
    top_p: float = 1.0
    """Sample only from the most probable tokens that together reach this probability; 1 is off."""
    top_k: int = 0
    """Sample only from this number of most probable tokens; 0 is off."""
    stop: tuple[str | int, ...] = ()
    """Strings and token ids that end an answer besides EOS, in training and evaluations: it keeps the token that
    completes one, and the verifier sees the text before."""
    keep_special_tokens: tuple[str, ...] = ()
    """Special tokens that stay in the text that the verifier sees, besides those that mark a thought or a result
    (`<think>`, `<|begin_of_box|>`); all others are taken out."""
    allow_truncated_sampling: bool = False
    """Train with `top_p` or `top_k` although it biases the ratio, whose probabilities are of the full vocabulary."""
    dynamic_sampling: bool = False
    """Draw more problems until P groups have both right and wrong answers (DAPO, arXiv 2503.14476, section 3.2)."""
    max_rounds: int = 10
    """Rounds of dynamic sampling, after which groups without gradient fill up the rollout, with a warning."""
    overlong_buffer: int = 0
    """Tokens before `max_new_tokens` over which a soft punishment grows (DAPO Eq. 13); 0 means none."""
    overlong_penalty: float = 1.0
    """The punishment at `max_new_tokens`."""
    weight_sync_tolerance: float | None = None
    """Largest difference in log-probability, on fixed tokens, between sampler and trainer after a weight sync; above it
    the run stops. Null: 1e-3, or 0.5 in half precision."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be trained with."""
        if self.max_new_tokens < 1 or self.max_rounds < 1:
            raise ValueError(
                f"rollout.max_new_tokens = {self.max_new_tokens} and rollout.max_rounds = {self.max_rounds} "
                "must be at least 1"
            )
        if not self.temperature > 0:
            raise ValueError(
                f"rollout.temperature = {self.temperature}: training needs a temperature above 0, "
                "greedy answers have no probability ratio"
            )
        self._check_truncation()
        self._check_stop()
        if self.weight_sync_tolerance is not None and not self.weight_sync_tolerance > 0:
            raise ValueError(f"rollout.weight_sync_tolerance = {self.weight_sync_tolerance} must be positive, or null")
        if not 0 <= self.overlong_buffer <= self.max_new_tokens:
            raise ValueError(
                f"rollout.overlong_buffer = {self.overlong_buffer} must lie between 0 and "
                f"rollout.max_new_tokens = {self.max_new_tokens}"
            )

    @property
    def truncates(self) -> bool:
        """True if answers are sampled from a part of the vocabulary."""
        return self.top_p < 1 or self.top_k > 0

    def _check_stop(self) -> None:
        for item in self.stop:
            if isinstance(item, bool) or not isinstance(item, str | int):
                raise ValueError(f"rollout.stop: {item!r} must be a string or a token id")
            if item == "":
                raise ValueError("rollout.stop: an empty string would end every answer at its first token")
            if isinstance(item, int) and item < 0:
                raise ValueError(f"rollout.stop: token id {item} must not be negative")

    def _check_truncation(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"rollout.top_p = {self.top_p} must lie in (0, 1]; 1 is off")
        if self.top_k < 0:
            raise ValueError(f"rollout.top_k = {self.top_k} must be at least 0; 0 is off")
        if self.truncates and not self.allow_truncated_sampling:
            raise ValueError(
                f"rollout.top_p = {self.top_p} with rollout.top_k = {self.top_k} samples answers from a part of the "
                "vocabulary, but log-probabilities and entropies are of the full vocabulary: the ratio is biased and "
                "forking tokens are chosen by another distribution than the one sampled. To train so nevertheless, set "
                "rollout.allow_truncated_sampling: true"
            )
