"""Metrics that combine, some tokens of a micro-batch, and values that a micro-batch reads and writes."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import random_tokens
from tiny import rollout_batch
from torch import Tensor

from forklight.algo.batch import Metrics, MicroBatch, TokenBatch


def metrics(sums, maxima):
    """Float64 scalars."""
    return Metrics(*({name: torch.tensor(v).double() for name, v in part.items()} for part in (sums, maxima)))


def numbers(found):
    return tuple({name: value.item() for name, value in part.items()} for part in found)


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_sums_add_up_and_maxima_combine_by_maximum():
    one = metrics({"tokens": 3, "loss": -0.5}, {"ratio": 1.5, "gap": -2})
    other = metrics({"tokens": 4, "loss": 0.25}, {"ratio": 1.25, "gap": -1})
    assert numbers(one.and_also(other)) == ({"tokens": 7, "loss": -0.25}, {"ratio": 1.5, "gap": -1})
    assert numbers(one) == ({"tokens": 3, "loss": -0.5}, {"ratio": 1.5, "gap": -2})
    assert numbers(other) == ({"tokens": 4, "loss": 0.25}, {"ratio": 1.25, "gap": -1})


def test_names_of_one_side_alone_stay():
    one, other = metrics({"a": 1, "both": 2}, {"x": 3}), metrics({"b": 10, "both": 20}, {"y": 30})
    assert numbers(one.and_also(other)) == ({"a": 1, "both": 22, "b": 10}, {"x": 3, "y": 30})
    nothing = Metrics({}, {})
    assert numbers(one.and_also(nothing)) == numbers(nothing.and_also(one)) == numbers(one)
    # a sum and a maximum of one name are two things
    assert numbers(metrics({"a": 1}, {}).and_also(metrics({}, {"a": 5}))) == ({"a": 1}, {"a": 5})


NAMED = st.dictionaries(st.sampled_from("abcd"), st.integers(-1000, 1000))


@given(st.lists(st.tuples(NAMED, NAMED)))
def test_any_number_of_metrics_are_the_sums_and_maxima_of_each_name(parts):
    combined = Metrics({}, {})
    for part in parts:
        combined = combined.and_also(metrics(*part))
    for found, of_parts, combine in zip(numbers(combined), zip(*parts, strict=True), (sum, max), strict=False):
        names = {name for part in of_parts for name in part}
        assert found == {name: combine(part[name] for part in of_parts if name in part) for name in names}
    if not parts:
        assert combined == ({}, {})


def test_a_prefix_stands_before_every_name():
    one = metrics({"tokens": 3, "loss": 1}, {"ratio": 2})
    assert numbers(one.named("kept_")) == ({"kept_tokens": 3, "kept_loss": 1}, {"kept_ratio": 2})
    assert numbers(one) == ({"tokens": 3, "loss": 1}, {"ratio": 2})
    assert numbers(one.named("")) == numbers(one)
    both = one.named("kept_").and_also(metrics({"tokens": 5}, {}).named("dropped_"))
    assert numbers(both)[0] == {"kept_tokens": 3, "kept_loss": 1, "dropped_tokens": 5}


# -- some of the tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "places"),
    [
        (torch.tensor([7, 2, 39]), [7, 2, 39]),
        (torch.arange(0), []),
        (slice(3, 6), [3, 4, 5]),
        (slice(38, 50), [38, 39]),
        (slice(None), list(range(40))),
    ],
)
def test_some_tokens_have_the_values_of_these_places_in_every_field(tokens, places):
    every = random_tokens()
    some = every.at(tokens)
    assert some.rows == every.rows
    of_tokens = [f.name for f in fields(TokenBatch) if f.name != "rows"]
    assert all(isinstance(getattr(every, name), Tensor) for name in of_tokens)
    for name in of_tokens:
        value = getattr(some, name)
        assert value.dtype == getattr(every, name).dtype
        assert value.tolist() == [getattr(every, name)[place].item() for place in places]
    some.logp.sum().backward()
    assert every.logp.grad.tolist() == [float(place in places) for place in range(40)]


def test_fields_that_are_left_out_stay_out():
    every = random_tokens()
    bare = TokenBatch(every.logp, every.old_logp, every.advantages, every.fork_mask, every.eligible, every.row, 5)
    for tokens in (torch.tensor([1, 4]), slice(1, 4)):
        some = bare.at(tokens)
        assert some.entropy is some.ref_logp is some.cov_mask is None


@given(st.lists(st.integers(0, 39)), st.integers(0, 40), st.integers(0, 40))
def test_a_part_of_some_tokens_is_those_at_its_places(places, start, end):
    every, index, part = random_tokens(), torch.tensor(places, dtype=torch.int64), slice(start, end)
    twice, once = every.at(index).at(part), every.at(index[part])
    for f in fields(TokenBatch):
        one, other = getattr(twice, f.name), getattr(once, f.name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


# -- values of a micro-batch's tokens ----------------------------------------------------------------------------------

# two answers of 1 and 2 tokens to rows 2 and 0 of a rollout whose longest answer has 3
TWO_ROWS = MicroBatch(
    input_ids=torch.tensor([[5, 6, 0], [5, 7, 8]]),
    prompt_length=torch.tensor([1, 1]),
    answer_mask=torch.tensor([[True, False], [True, True]]),
    rows=torch.tensor([2, 0]),
    problem_index=torch.tensor([0, 0]),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_tokens_are_written_into_a_copy_that_has_their_type(dtype):
    values = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.float32)
    tokens = torch.tensor([70, 10, 0]).to(dtype)
    version = values._version
    written = TWO_ROWS.write(values, tokens)
    expected = [[10, 0, 3], [4, 5, 6], [70, 8, 9]]
    assert written.dtype == dtype
    assert written.tolist() == torch.tensor(expected).to(dtype).tolist()
    assert written.untyped_storage().data_ptr() != values.untyped_storage().data_ptr()
    assert values.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert values._version == version
    assert torch.equal(TWO_ROWS.read(written), tokens)


def test_a_copy_is_apart_from_the_gradient_of_what_is_written():
    values, tokens = torch.zeros(3, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64, requires_grad=True)
    written = TWO_ROWS.write(values, tokens)
    assert not written.requires_grad
    assert written.sum() == 3


def test_one_element_that_stands_for_all_is_written_as_a_whole_tensor():
    nan = torch.tensor(torch.nan)
    written = TWO_ROWS.write(nan.expand(3, 3), torch.tensor([70.0, 10.0, 0.0]))
    assert written.nan_to_num(-1).tolist() == [[10, 0, -1], [-1, -1, -1], [70, -1, -1]]
    assert nan.isnan()


@given(st.integers(0, 10**6), st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_what_is_written_is_read_again_and_nothing_else_changes(seed, data, dtype):
    x = rollout_batch(seed)
    rows = data.draw(st.lists(st.integers(0, len(x.update) - 1), unique=True))
    micro_batch = x.micro_batch(torch.tensor(rows, dtype=torch.int64))
    noise = torch.Generator().manual_seed(seed)
    values = torch.randn(x.answer_mask.shape, generator=noise, dtype=dtype)
    tokens = torch.randn(int(micro_batch.answer_mask.sum()), generator=noise, dtype=dtype)
    before = values.clone()
    written = micro_batch.write(values, tokens)
    assert torch.equal(micro_batch.read(written), tokens)
    assert torch.equal(values, before)
    own = torch.zeros_like(x.answer_mask)
    own[rows] = x.answer_mask[rows]
    assert own.sum() == len(tokens)
    assert torch.equal(written[~own], values[~own])
    # by hand: the tokens stand in the order of the rows and of the places in each answer
    expected = [written[row, place].item() for row in rows for place in range(int(x.answer_length[row]))]
    assert tokens.tolist() == expected
