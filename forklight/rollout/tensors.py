"""The groups of a rollout as the tensors of one rank."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from forklight.algo.batch import RolloutBatch
from forklight.rollout.generate import Group
from forklight.types import Completion


def batch_of_rank(groups: list[Group], rewards: Tensor, places: Sequence[tuple[int, int]], rank: int) -> RolloutBatch:
    """The tensors of a rank's groups, without advantages.

    Args:
        groups: of all ranks.
        rewards: [P,G].
        places: update and rank of each group.
        rank: whose groups.
    """
    mine = [i for i, (_, owner) in enumerate(places) if owner == rank]
    rows = [(i, completion) for i in mine for completion in groups[i].completions]
    completions = [completion for _, completion in rows]
    prompt_length = torch.tensor([len(groups[i].prompt_ids) for i, _ in rows])
    answer_length = torch.tensor([len(completion.token_ids) for completion in completions])
    parts = (part for i, completion in rows for part in (groups[i].prompt_ids, completion.token_ids))
    tokens = torch.from_numpy(np.fromiter(chain.from_iterable(parts), np.int64))
    problem_index = torch.tensor([groups[i].problem_index for i, _ in rows])
    number = torch.tensor([completion.index for completion in completions])
    mine_rewards = rewards[mine].flatten()
    return RolloutBatch(
        input_ids=_padded(tokens, prompt_length + answer_length, 0),
        prompt_length=prompt_length,
        answer_length=answer_length,
        rewards=mine_rewards,
        advantages=torch.zeros_like(mine_rewards),
        contributing=torch.zeros_like(mine_rewards, dtype=torch.bool),
        right=torch.tensor([verdict.right for i in mine for verdict in groups[i].verdicts]),
        truncated=torch.tensor([completion.truncated for completion in completions]),
        update=torch.tensor([places[i][0] for i, _ in rows]),
        problem_index=problem_index,
        sequence_id=problem_index * rewards.shape[1] + number,
        sampler_logp=_sampler_logp(groups, completions, answer_length),
        uids=tuple(completion.uid for completion in completions),
    )


def _sampler_logp(groups: list[Group], mine: list[Completion], length: Tensor) -> Tensor | None:
    """float32 `[S,T]`, NaN after an answer's end; None on all ranks if the sampler of any rank reported none."""
    if any(completion.logp is None for group in groups for completion in group.completions):
        return None
    logp = bytearray().join(completion.logp for completion in mine if completion.logp is not None)
    return _padded(torch.frombuffer(logp, dtype=torch.float32), length, torch.nan)


def _padded(values: Tensor, length: Tensor, fill: float) -> Tensor:
    """Rows of these lengths from their concatenated values; `fill` after a row's end."""
    longest = int(length.max())
    padded = torch.full((len(length), longest), fill, dtype=values.dtype)
    return padded.masked_scatter_(torch.arange(longest) < length[:, None], values)
