"""From problems to a rollout: sample, verify, filter, shape, group advantages."""
