"""Answers for metrics, shared by their tests."""

import torch

from forklight.metrics import AnswerMetric
from forklight.types import Problem

UIDS = [Problem.make(f"problem {number}", "0", "test").uid for number in range(12)]


def answers(right, votes=None, truncated=None, length=None):
    """Arguments of `update` after the uid; by default right answers are class 0, each wrong one is its own class."""
    right = torch.tensor(right, dtype=torch.bool)
    own = torch.arange(1, right.shape[1] + 1).expand_as(right)
    return {
        "right": right,
        "votes": torch.where(right, 0, own) if votes is None else torch.tensor(votes),
        "truncated": torch.zeros_like(right) if truncated is None else torch.tensor(truncated, dtype=torch.bool),
        "length": torch.ones_like(own) if length is None else torch.tensor(length),
    }


def score(metric: AnswerMetric, right, **more) -> float:
    metric.update(UIDS[: len(right)], **answers(right, **more))
    return metric.compute().item()
