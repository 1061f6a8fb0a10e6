import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import rollout_batch

from forklight.algo.batch import MicroBatch
from forklight.algo.packing import PADDING, buckets_of, pack


def micro_batch(*groups):
    """Groups of a prompt and its answers, as token ids."""
    rows = [(number, prompt, answer) for number, (prompt, answers) in enumerate(groups) for answer in answers]
    ids = [torch.tensor(prompt + answer) for _, prompt, answer in rows]
    length = torch.tensor([len(answer) for *_, answer in rows])
    return MicroBatch(
        torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        torch.tensor([len(prompt) for _, prompt, _ in rows]),
        torch.arange(int(length.max())) < length[:, None],
        torch.arange(len(rows)),
        torch.tensor([number for number, *_ in rows]),
    )


TWO_GROUPS = micro_batch(([10, 11, 12], [[20, 21], [30, 31, 32], [40]]), ([50], [[60, 61]]))


def test_hand_worked():
    packed = pack(TWO_GROUPS)
    # the prompt once, then answers without their last tokens, which predict nothing
    assert packed.input_ids.tolist() == [10, 11, 12, 20, 30, 31, 50, 60]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 3, 4, 0, 1]
    # the prompt's last token predicts the first token of each of the group's answers
    assert packed.predicts.tolist() == [2, 3, 2, 4, 5, 2, 6, 7]


def test_only_what_is_needed_is_there():
    packed = pack(TWO_GROUPS, needed=torch.tensor([0, 2, 1, 0]))
    assert packed.input_ids.tolist() == [10, 11, 12, 30]
    assert packed.position_ids.tolist() == [0, 1, 2, 3]
    assert packed.predicts.tolist() == [0, 0, 2, 3, 0, 2, 0, 0]  # 0 where nothing is predicted
    assert len(pack(TWO_GROUPS, needed=torch.zeros(4, dtype=torch.int64)).input_ids) == 0


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=50, deadline=None)
def test_attention_sees_every_sequence_in_its_order(seed, cut):
    x = rollout_batch(seed)
    part = x.micro_batch(torch.arange(len(x.problem_index)))
    needed = x.answer_length
    if cut:
        needed = needed * torch.rand(len(needed), generator=torch.Generator().manual_seed(seed)).round().long()
    packed = pack(part, needed)
    order = [row for rows, _ in buckets_of(x.prompt_length * (needed > 0) + (needed - 1).clamp(min=0)) for row in rows]
    seen = [places for bucket in packed.buckets for places in bucket]
    for row, places in zip(order, seen, strict=True):
        length = int(x.prompt_length[row] + needed[row] - 1)
        assert torch.equal(packed.input_ids[places[:length]], x.input_ids[row, :length])
        assert torch.equal(packed.position_ids[places[:length]], torch.arange(length))
    # what attention makes of a token is read where the token stands in some sequence
    flat = torch.cat([bucket.flatten() for bucket in packed.buckets]) if packed.buckets else packed.place
    assert torch.equal(flat[packed.place], torch.arange(len(packed.input_ids)))
    for row, column, place in zip(part.row, part.column, packed.predicts, strict=True):
        if column < needed[row]:
            at = int(x.prompt_length[row] + column) - 1
            assert packed.input_ids[place] == x.input_ids[row, at]
            assert packed.position_ids[place] == at


@given(st.lists(st.integers(0, 200), max_size=40))
def test_buckets_hold_every_sequence_once_with_little_padding(lengths):
    length = torch.tensor(lengths, dtype=torch.int64)
    buckets = buckets_of(length)
    rows = sorted(row for members, _ in buckets for row in members.tolist())
    assert rows == [row for row, size in enumerate(lengths) if size]
    for members, longest in buckets:
        assert longest == length[members].max()
        assert longest * len(members) <= (1 + PADDING) * length[members].sum()


def test_groups_share_a_prompt_only_with_their_neighbours():
    x = rollout_batch(3, problems=2, answers=2)
    mixed = x.micro_batch(torch.tensor([0, 2, 1, 3]))  # a plan keeps draw order; if not, nothing is shared
    assert len(pack(mixed).input_ids) == int((x.prompt_length + x.answer_length - 1).sum())


def test_segments_are_the_same_sequences():
    x = rollout_batch(5)
    packed = pack(x.micro_batch(torch.arange(len(x.problem_index))), segments=True)
    segments = packed.segments
    ends, keys = segments.query_ends.tolist(), segments.key_ends.tolist()
    assert ends[-1] == len(packed.input_ids)
    assert segments.most_keys == int((x.prompt_length + x.answer_length - 1).max())
    for stretch in range(len(ends) - 1):
        places = segments.keys[keys[stretch] : keys[stretch + 1]]
        assert torch.equal(packed.position_ids[places], torch.arange(len(places)))
        own = torch.arange(ends[stretch], ends[stretch + 1])
        assert torch.equal(places[len(places) - len(own) :], own)
