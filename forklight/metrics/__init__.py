"""Scores of an evaluation with n sampled answers per problem, as torchmetrics that survive a padded shard."""

from forklight.metrics.answers import NO_ANSWER, AnswerMetric, Answers
from forklight.metrics.majority import MajAtK, majority_at_k
from forklight.metrics.paired import Paired, paired_difference
from forklight.metrics.scores import (
    AnswerScores,
    AvgAtK,
    AvgStandardError,
    MeanLength,
    PassAtK,
    TruncatedShare,
    UnjudgedShare,
    pass_at_k,
)

__all__ = [
    "NO_ANSWER",
    "AnswerMetric",
    "AnswerScores",
    "Answers",
    "AvgAtK",
    "AvgStandardError",
    "MajAtK",
    "MeanLength",
    "Paired",
    "PassAtK",
    "TruncatedShare",
    "UnjudgedShare",
    "majority_at_k",
    "paired_difference",
    "pass_at_k",
]
