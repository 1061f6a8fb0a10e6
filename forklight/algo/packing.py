"""Sequences as one row without padding, in which the prompt of a group occurs once for all of its answers.

Only attention needs to know which tokens belong to which sequence. It processes sequences of similar length together,
as row indices of their tokens. There a prompt's tokens are repeated for every answer of the group; they go through
every other part of the model once. Results change by rounding alone: each token depends on the same tokens before it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forklight.algo.batch import MicroBatch

PADDING = 0.25
"""Most padding in the attention of a bucket, as a share of its tokens."""


@dataclass(frozen=True, slots=True)
class Segments:
    """A packed row as segments of queries, each a prompt or an answer, with one segment of keys for each."""

    keys: Tensor  # int64 [keys] row indices of the keys of all segments
    query_ends: Tensor  # int32 [segments + 1] 0, then the end of each segment of queries
    key_ends: Tensor  # int32 [segments + 1] the same for keys
    most_queries: int
    most_keys: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A micro-batch as one row of U tokens: each sequence's answer, after its prompt if no earlier one has the same."""

    input_ids: Tensor  # int64 [U]
    position_ids: Tensor  # int64 [U] position in the token's own sequence
    buckets: tuple[Tensor, ...]  # int64 [B,L] each: row indices of the tokens of B sequences; 0 after their ends
    place: Tensor  # int64 [U] index of each token in the concatenation of all buckets
    predicts: Tensor  # int64 [N] row index of the token that predicts each answer token; 0 if it was left out
    segments: Segments | None = None  # the same layout for variable-length kernels


def pack(micro_batch: MicroBatch, needed: Tensor | None = None, *, segments: bool = False) -> Packed:
    """Packs a micro-batch into one row.

    Args:
        micro_batch: sequences, of which adjacent ones of a group have the same prompt.
        needed: int64 [S], how many of each sequence's first answer tokens are to be predicted; all if None. Tokens
            that no prediction needs are left out, and so are sequences without a prediction.
        segments: whether to add the layout for variable-length kernels.
    """
    device = micro_batch.rows.device
    prompt, answer = micro_batch.prompt_length, micro_batch.answer_mask.sum(1)
    needed = answer if needed is None else needed
    answers = (needed - 1).clamp(min=0)  # an answer's last token predicts nothing
    used = needed > 0
    prompt = prompt * used
    first = _first_of_group(micro_batch.problem_index, used)
    opens = (first == torch.arange(len(first), device=device)) & used
    prompts = prompt * opens
    size = prompts + answers
    begin = size.cumsum(0) - size
    start, answer_start = begin[first], begin + prompts

    column = torch.arange(micro_batch.input_ids.shape[1], device=device)
    in_prompt = column < prompt[:, None]
    in_sequence = column < (prompt + answers)[:, None]
    held = in_sequence & (opens[:, None] | ~in_prompt)
    where = torch.where(in_prompt, start[:, None] + column, (answer_start - prompt)[:, None] + column)
    where = torch.where(in_sequence, where, 0)
    row, first_column = micro_batch.row, prompt[micro_batch.row] - 1
    predicted = micro_batch.column < needed[row]
    predicts = torch.where(predicted, where[row, (first_column + micro_batch.column).clamp(min=0)], 0)

    length = prompt + answers
    offset = torch.zeros_like(length)
    found, buckets, total = buckets_of(length), [], 0
    for rows, longest in found:
        offset[rows] = total + torch.arange(len(rows), device=device) * longest
        buckets.append(where[rows, :longest])
        total += len(rows) * longest
    sequence, column_of = held.nonzero().unbind(1)
    return Packed(
        input_ids=micro_batch.input_ids[held],
        position_ids=column_of,
        buckets=tuple(buckets),
        place=offset[sequence] + column_of,
        predicts=predicts,
        segments=_segments(where, prompts, prompt, answers) if segments and held.any() else None,
    )


def _segments(where: Tensor, prompts: Tensor, prompt: Tensor, answers: Tensor) -> Segments:
    """The layout for variable-length kernels; an answer's keys are those of its prompt and its own."""
    queries = torch.stack([prompts, answers], 1).flatten()
    keys = torch.stack([prompts, (prompt + answers) * (answers > 0)], 1).flatten()
    queries, keys, places = queries[queries > 0], keys[queries > 0], where.repeat_interleave(2, 0)[queries > 0]
    query_ends, key_ends = (F.pad(sizes.cumsum(0), (1, 0)).to(torch.int32) for sizes in (queries, keys))
    held = torch.arange(where.shape[1], device=where.device) < keys[:, None]
    return Segments(places[held], query_ends, key_ends, int(queries.max()), int(keys.max()))


def buckets_of(length: Tensor) -> list[tuple[Tensor, int]]:
    """Groups sequences of similar length: their indices, int64 `[B]`, and the longest length; empty ones are left out.

    Args:
        length: int64 [S].
    """
    order = length.argsort(descending=True, stable=True)
    sizes = [size for size in length[order].tolist() if size]
    found, begin, tokens = [], 0, 0
    for end, size in enumerate(sizes):
        padded = (end - begin + 1) * sizes[begin]
        if end > begin and padded > (1 + PADDING) * (tokens + size):
            found.append((order[begin:end], sizes[begin]))
            begin, tokens = end, 0
        tokens += size
    if sizes:
        found.append((order[begin : len(sizes)], sizes[begin]))
    return found


def _first_of_group(group: Tensor, used: Tensor) -> Tensor:
    """For each sequence the first used one among the adjacent sequences of its group, int64 `[S]`."""
    number = torch.arange(len(group), device=group.device)
    if not len(group):
        return number
    new = torch.ones_like(used)
    new[1:] = group[1:] != group[:-1]
    run = new.cumsum(0) - 1
    first = torch.full((int(run[-1]) + 1,), len(group), device=group.device)
    first.scatter_reduce_(0, run, torch.where(used, number, len(group)), "amin")
    return first[run].clamp(max=len(group) - 1)
