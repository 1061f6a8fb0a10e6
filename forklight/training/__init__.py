"""From a rollout to the loss of its micro-batches: passes, selection, denominators, loss, report."""
