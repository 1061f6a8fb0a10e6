import pytest
from tokens import build_tokenizer

from forklight.sampling.answer_text import AnswerText
from forklight.sampling.stops import StopCheck

THOUGHT = ("<think>", "</think>", "<tool>")
TEXT = "<think>2+3</think>\\boxed{5}<tool></s>"


@pytest.fixture(scope="module")
def tokenizer():
    """One whose marks of a thought are special tokens."""
    return build_tokenizer(special=THOUGHT)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_marks_of_a_thought_stay(tokenizer):
    ids = ids_of(tokenizer, TEXT)
    plain = ids_of(tokenizer, "7 ")
    assert len(ids) == len("2+3\\boxed{5}") + 4
    assert AnswerText(tokenizer).of_many([ids, plain]) == ["<think>2+3</think>\\boxed{5}", "7 "]
    assert AnswerText(tokenizer, ("<tool>",)).of(ids) == "<think>2+3</think>\\boxed{5}<tool>"


def test_marks_that_are_no_tokens_change_nothing():
    tokenizer = build_tokenizer()
    ids = ids_of(tokenizer, "<think>2</think> 3</s>")
    assert AnswerText(tokenizer).of(ids) == "<think>2</think> 3"


def test_a_name_that_is_no_token_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"rollout\.keep_special_tokens: '<tol>' is no token"):
        AnswerText(tokenizer, ("<tol>",))


def test_stops_cut_the_same_text(tokenizer):
    stops = StopCheck(["5}"], tokenizer, AnswerText(tokenizer))
    ids = ids_of(tokenizer, TEXT)
    length = stops.length(ids)
    assert tokenizer.decode(ids[:length]).endswith("5}")
    assert stops.text_before(ids[:length]) == "<think>2+3</think>\\boxed{"
