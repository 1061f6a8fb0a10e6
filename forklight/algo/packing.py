"""Sequences as one row without padding, in which the prompt of a group stands once for all of its answers.

Only attention sees that tokens belong to different sequences. It gets, for some sequences of about one length at a
time, the places of their tokens; a prompt's token has as many places there as its group has answers, but goes through
every other part of the model once. Nothing of this changes a number beyond rounding: a token depends on those before
it, and they are the same.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from forklight.algo.types import Chunk

PADDING = 0.25
"""Most padding in the attention of a bucket, as a share of its tokens."""


@dataclass(frozen=True, slots=True)
class Segments:
    """A packed row as stretches of queries, prompts and answers in turn, each with its own stretch of keys."""

    keys: Tensor  # int64 [K] places in the row of all stretches' keys
    query_ends: Tensor  # int32 [stretches + 1] 0, and where each stretch of queries ends
    key_ends: Tensor  # int32 [stretches + 1]
    most_queries: int
    most_keys: int


@dataclass(frozen=True, slots=True)
class LastQueries:
    """The Q tokens whose last hidden state is wanted: of others the last layer needs keys and values only."""

    tokens: Tensor  # int64 [Q] places in the row
    batches: tuple[Tensor, ...]  # int64 [B,n] per bucket: numbers of its sequences' queries; 0 behind their ends
    masks: tuple[Tensor, ...]  # bool [B,1,n,L] per bucket: keys that each of them sees
    place: Tensor  # int64 [Q] place of each token in the concatenation of all batches


@dataclass(frozen=True, slots=True)
class Packed:
    """A chunk as one row of U tokens: per sequence its prompt, unless an earlier one brought it, and its answer."""

    input_ids: Tensor  # int64 [U]
    position_ids: Tensor  # int64 [U] position in the token's own sequence
    buckets: tuple[Tensor, ...]  # int64 [B,L] each: places in the row of the tokens of B sequences; 0 behind their ends
    place: Tensor  # int64 [U] place of each token in the concatenation of all buckets
    predicts: Tensor  # int64 [N] place of the token that predicts each answer token; 0 where none is there
    members: tuple[Tensor, ...]  # int64 [B] per bucket: its sequences
    segments: Segments | None = None  # the same for kernels of any lengths
    last: LastQueries | None = None  # what the last layer is for; every token if None


def pack(chunk: Chunk, needed: Tensor | None = None, *, segments: bool = False) -> Packed:
    """Lays a chunk out as one row.

    Args:
        chunk: sequences whose neighbours in one group have the same prompt.
        needed: int64 [S], how many answer tokens of each sequence are to be predicted, the first ones; all if None.
            What none of them needs is left out, also a whole sequence that needs none.
        segments: whether to lay it out for kernels of any lengths too.
    """
    device = chunk.rows.device
    prompt, answer = chunk.prompt_length, chunk.answer_mask.sum(1)
    needed = answer if needed is None else needed
    answers = (needed - 1).clamp(min=0)  # an answer's last token predicts nothing
    used = needed > 0
    prompt = prompt * used
    first = _first_of_group(chunk.group, used)
    opens = (first == torch.arange(len(first), device=device)) & used
    prompts = prompt * opens
    size = prompts + answers
    begin = size.cumsum(0) - size
    start, answer_start = begin[first], begin + prompts

    column = torch.arange(chunk.input_ids.shape[1], device=device)
    in_prompt = column < prompt[:, None]
    in_sequence = column < (prompt + answers)[:, None]
    held = in_sequence & (opens[:, None] | ~in_prompt)
    where = torch.where(in_prompt, start[:, None] + column, (answer_start - prompt)[:, None] + column)
    where = torch.where(in_sequence, where, 0)
    row, first_column = chunk.row, prompt[chunk.row] - 1
    predicted = chunk.column < needed[row]
    predicts = torch.where(predicted, where[row, (first_column + chunk.column).clamp(min=0)], 0)

    length = prompt + answers
    offset = torch.zeros_like(length)
    found, buckets, total = buckets_of(length), [], 0
    for rows, longest in found:
        offset[rows] = total + torch.arange(len(rows), device=device) * longest
        buckets.append(where[rows, :longest])
        total += len(rows) * longest
    sequence, column_of = held.nonzero().unbind(1)
    return Packed(
        input_ids=chunk.input_ids[held],
        position_ids=column_of,
        buckets=tuple(buckets),
        place=offset[sequence] + column_of,
        predicts=predicts,
        members=tuple(rows for rows, _ in found),
        segments=_segments(where, prompts, prompt, answers) if segments and held.any() else None,
    )


def prune(packed: Packed, chunk: Chunk, read: Tensor) -> Packed:
    """Leaves only the hidden states that predict some answer tokens to the last layer.

    Args:
        packed: the chunk's row, laid out with all that these tokens need.
        chunk: the chunk.
        read: int64 [M], the answer tokens, ascending; M > 0.

    Returns:
        The row, whose `predicts` are places among the `last` queries.
    """
    tokens, number = torch.unique(packed.predicts[read], return_inverse=True)  # a prompt's last token predicts several
    row, position = chunk.row[read], chunk.prompt_length[chunk.row[read]] + chunk.column[read] - 1
    count = torch.bincount(row, minlength=len(chunk.rows))
    slot = torch.arange(len(read), device=read.device) - (count.cumsum(0) - count)[row]
    positions, numbers = (count.new_zeros(len(count), int(count.max())) for _ in range(2))
    positions[row, slot], numbers[row, slot] = position, number
    offset, total, batches, masks = torch.zeros_like(count), 0, [], []
    for rows, bucket in zip(packed.members, packed.buckets, strict=True):
        most = int(count[rows].max())
        offset[rows] = total + torch.arange(len(rows), device=read.device) * most
        total += len(rows) * most
        batches.append(numbers[rows, :most])
        key = torch.arange(bucket.shape[1], device=read.device)
        masks.append((key <= positions[rows, :most, None])[:, None])
    place = torch.zeros_like(tokens).scatter(0, number, offset[row] + slot)
    predicts = torch.zeros_like(packed.predicts).index_put((read,), number)
    return replace(packed, predicts=predicts, last=LastQueries(tokens, tuple(batches), tuple(masks), place))


def _segments(where: Tensor, prompts: Tensor, prompt: Tensor, answers: Tensor) -> Segments:
    """An answer's keys are those of its prompt, whoever brought it, and its own."""
    queries = torch.stack([prompts, answers], 1).flatten()
    keys = torch.stack([prompts, (prompt + answers) * (answers > 0)], 1).flatten()
    queries, keys, places = queries[queries > 0], keys[queries > 0], where.repeat_interleave(2, 0)[queries > 0]
    query_ends, key_ends = (F.pad(sizes.cumsum(0), (1, 0)).to(torch.int32) for sizes in (queries, keys))
    held = torch.arange(where.shape[1], device=where.device) < keys[:, None]
    return Segments(places[held], query_ends, key_ends, int(queries.max()), int(keys.max()))


def buckets_of(length: Tensor) -> list[tuple[Tensor, int]]:
    """Sequences of about one length: which, int64 `[B]`, and their longest; those without tokens are left out.

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
    """For each sequence the first of its run of neighbours in one group that is used, int64 `[S]`."""
    number = torch.arange(len(group), device=group.device)
    if not len(group):
        return number
    new = torch.ones_like(used)
    new[1:] = group[1:] != group[:-1]
    run = new.cumsum(0) - 1
    first = torch.full((int(run[-1]) + 1,), len(group), device=group.device)
    first.scatter_reduce_(0, run, torch.where(used, number, len(group)), "amin")
    return first[run].clamp(max=len(group) - 1)
