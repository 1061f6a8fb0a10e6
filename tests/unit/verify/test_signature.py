"""Ways to call a reward function, by its parameters."""

import operator

import pytest

from forklight.types import Problem
from forklight.verify.calling import CannotCall
from forklight.verify.signature import calling_of

FIELDS = {"problem": "What is 2 + 3?", "answer": "5", "level": 2, "kind": "sum"}
REQUEST = {"answer": "It is 5.", "gold": "5", "prompt": "What is 2 + 3?", "source": "school", "fields": FIELDS}


def pair(answer, gold): ...
def other_names(text, label): ...
def text_first(text, answer): ...
def solution_first(solution, answer): ...
def swapped(ground_truth, response): ...
def named(prompt, completion, answer, level, *, kind="", shape="round"): ...
def response(completion): ...
def with_options(answer, strict=True): ...
def more_names(answer, gold, level, **more): ...
def any_order(*texts): ...
def prompted(prompt, answer): ...
def trl(completions, prompts, answer, **kwargs): ...
def trl_columns(completions, solution, level): ...
def verl(data_source, solution_str, ground_truth, extra_info=None): ...


def trl_messages(completions, **kwargs):
    return [len(completion[0]["content"]) for completion in completions]


MORE = {"gold": "5", "ground_truth": "5", "solution": "5", "prompt": "What is 2 + 3?"}


@pytest.mark.parametrize(
    ("function", "positional", "by_name", "words"),
    [
        (operator.eq, ["It is 5.", "5"], {}, "eq(answer, gold)"),
        (pair, ["It is 5.", "5"], {}, "pair(answer, gold)"),
        (other_names, ["It is 5.", "5"], {}, "other_names(answer, gold)"),
        (text_first, ["It is 5.", "5"], {}, "text_first(answer, gold)"),
        (solution_first, ["It is 5.", "5"], {}, "solution_first(answer, gold)"),
        (any_order, ["It is 5.", "5"], {}, "any_order(answer, gold)"),
        (response, ["It is 5."], {}, "response(answer)"),
        (with_options, ["It is 5."], {}, "with_options(answer, strict=field if any)"),
        (swapped, [], {"ground_truth": "5", "response": "It is 5."}, "swapped(ground_truth=gold, response=answer)"),
        (
            prompted,
            [],
            {"prompt": "What is 2 + 3?", "answer": "It is 5."},
            "prompted(prompt=prompt, answer=answer)",
        ),
        (
            named,
            [],
            {"prompt": "What is 2 + 3?", "completion": "It is 5.", "answer": "5", "level": 2, "kind": "sum"},
            "named(prompt=prompt, completion=answer, answer=gold, level=field, kind=field if any, shape=field if any)",
        ),
        (
            more_names,
            ["It is 5.", "5"],
            {"level": 2, **{k: v for k, v in (MORE | FIELDS).items() if k not in ("answer", "gold")}},
            "more_names(answer, gold, level=field, **fields)",
        ),
        (
            trl,
            [],
            {
                "completions": ["It is 5."],
                "prompts": ["What is 2 + 3?"],
                "answer": ["5"],
                **{k: [v] for k, v in (MORE | FIELDS).items() if k != "answer"},
            },
            "trl(completions=[answer], prompts=[prompt], answer=[gold], **fields)",
        ),
        (
            trl_columns,
            [],
            {"completions": ["It is 5."], "solution": ["5"], "level": [2]},
            "trl_columns(completions=[answer], solution=[gold], level=[field])",
        ),
        (
            verl,
            [],
            {"data_source": "school", "solution_str": "It is 5.", "ground_truth": "5", "extra_info": FIELDS},
            "verl(data_source=source, solution_str=answer, ground_truth=gold, extra_info=fields)",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_parameters_tell_the_call(function, positional, by_name, words):
    calling = calling_of(function)
    assert calling.arguments(REQUEST) == (positional, by_name)
    assert calling.describe() == words


def test_completions_are_messages_where_the_code_reads_their_content_or_the_config_says_so():
    said = [{"role": "assistant", "content": "It is 5."}]
    assert calling_of(trl_messages).arguments(REQUEST)[1]["completions"] == [said]
    assert calling_of(trl_messages).describe() == "trl_messages(completions=[messages of the answer], **fields)"
    assert calling_of(trl_messages, "text").arguments(REQUEST)[1]["completions"] == ["It is 5."]
    by_config = calling_of(trl, "messages").arguments(REQUEST)[1]
    assert by_config["prompts"] == [[{"role": "user", "content": "What is 2 + 3?"}]]


def test_columns_of_the_data_set_come_before_the_gold_in_trls_way_only():
    fields = {"solution": "2 + 3 = 5, so 5"}
    assert calling_of(trl_columns).arguments(REQUEST | {"fields": fields | {"level": 1}})[1]["solution"] == [
        "2 + 3 = 5, so 5"
    ]
    assert calling_of(lambda completions, solution: 1).reads_problems
    assert not calling_of(pair).reads_problems
    assert calling_of(lambda answer, solution: 1).arguments(REQUEST | {"fields": fields})[0] == ["It is 5.", "5"]


def test_what_comes_back_is_read_as_the_way_of_calling_has_it():
    assert calling_of(pair).reward(0.5) == 0.5
    assert calling_of(trl).reward([0.5]) == 0.5
    assert calling_of(trl).reward([None]) is None
    assert calling_of(verl).reward(0.5) == 0.5
    assert calling_of(verl).reward({"score": 0.5, "acc": True}) == 0.5
    for function, returned in ((trl, 0.5), (trl, [0.5, 1.0]), (trl, "1"), (verl, {"acc": 1})):
        with pytest.raises(ValueError, match="not"):
            calling_of(function).reward(returned)


def test_a_field_that_no_problem_has_is_named():
    with pytest.raises(CannotCall, match=r"no field for the parameter `level` \(fields of the problem: kind\)"):
        calling_of(named).arguments(REQUEST | {"fields": {"kind": "sum"}})


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: 1, "no parameter takes the answer"),
        (lambda gold: 1, "no parameter takes the answer"),
        (lambda prompt, level: 1, "no parameter takes the answer"),
        (lambda completion, response, gold: 1, "completion and response would each take the answer"),
    ],
)
def test_what_cannot_be_called_is_refused(function, words):
    with pytest.raises(ValueError, match=words):
        calling_of(function)


def test_a_row_of_the_data_set_makes_no_other_problem():
    one = Problem.make("What is 2 + 3?", "5", "school")
    other = Problem.make("What is 2 + 3?", "5", "school", FIELDS)
    assert one == other
    assert hash(one) == hash(other)
    assert other.fields["level"] == 2
