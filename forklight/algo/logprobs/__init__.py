"""Log-probabilities and entropies of the LM head: fused operations, and the plain ones that they must equal."""

from forklight.algo.logprobs.fused import selected_logprob, selected_policy_loss, selected_stats, token_stats

__all__ = ["selected_logprob", "selected_policy_loss", "selected_stats", "token_stats"]
