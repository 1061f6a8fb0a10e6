"""What happens around a step: evaluation, curves, checkpoints, guards."""
