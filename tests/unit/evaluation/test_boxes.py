"""The token that completes an answer's first box: against decoded prefixes, with the tokenizer that ships."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forklight.evaluation.boxes import box_ends
from forklight.models.loading import PolicyConfig, load_tokenizer
from forklight.verify.math.extract import first_box_end


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(PolicyConfig(path="tiny"))


@pytest.mark.parametrize(
    ("text", "behind"),
    [
        (r"So \boxed{5}. Or \boxed{6}", r"So \boxed{5}"),
        (r"\boxed{\frac{1}{2}} = 0.5}", r"\boxed{\frac{1}{2}}"),
        (r"a\} \fbox{\}{}} end", r"a\} \fbox{\}{}}"),
        (r"\boxed{\boxed{5}} }", r"\boxed{\boxed{5}}"),
        (r"\boxed{1 and \boxed{2}", r"\boxed{1 and \boxed{2}"),
        (r"{x} \boxed 5 \boxed{6", None),
        ("", None),
    ],
)
def test_the_first_box_of_a_text(text, behind):
    assert first_box_end(text) == (-1 if behind is None else len(behind))


def by_prefixes(ids, tokenizer):
    """Prefix by prefix: the first token after which the text has a box."""
    for number in range(len(ids)):
        if first_box_end(tokenizer.decode(ids[: number + 1], skip_special_tokens=True)) >= 0:
            return number
    return -1


pieces = st.sampled_from([r"\boxed{", "}", "{", "\\", " 12", "x", "}}", "é", "∑", "\n", "}.", r"\fbox {"])


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(st.lists(pieces, max_size=12).map("".join), max_size=3))
def test_it_is_the_first_prefix_with_a_box(tokenizer, texts):
    answers = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    expected = [by_prefixes(ids, tokenizer) for ids in answers]
    # where boxes are nested, the text's first box is the outer one, and a prefix ends with the inner one
    found = box_ends(answers, tokenizer)
    for text, one, other in zip(texts, found, expected, strict=True):
        assert (one == other) or (one > other >= 0 and text.count("box") > 1)


def test_the_token_has_the_brace(tokenizer):
    ids = tokenizer.encode(r"{1} so \boxed{7}, done {2}.", add_special_tokens=False)
    (end,) = box_ends([ids], tokenizer)
    assert tokenizer.decode(ids[: end + 1]).rstrip(",").endswith(r"\boxed{7}")
    assert not tokenizer.decode(ids[:end]).endswith("7}")
