import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from forklight.data.prompts import BOXED_CHAT, PAPER_BASE, PromptTemplate
from forklight.types import Problem

CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|start|>", "<|end|>"]
LATEX = r"Let $f(x)=\frac{x}{2}$ and {problem} or {0} {{}} %s; find \boxed{f(3)}."


def build_tokenizer(chat_template=None, start="<s> ", end=""):
    """A byte-level tokenizer of 260 entries; `start` and `end` are what it adds around every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    if start or end:
        specials = [(token, vocabulary[token]) for token in SPECIAL[:2]]
        core.post_processor = processors.TemplateProcessing(single=f"{start}$A{end}", special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module")
def chat():
    return build_tokenizer(CHAT)


@pytest.fixture(scope="module")
def base():
    return build_tokenizer()


def problem(text=LATEX):
    return Problem.make(text, "1", "test")


def test_chat_renders_the_user_message_and_opens_the_answer(chat):
    template = PromptTemplate("chat", "{problem}\nThink.")
    ids = template.encode(problem("1 + 1?"), chat)
    assert chat.decode(ids) == "<s><|start|>user\n1 + 1?\nThink.<|end|>\n<|start|>assistant\n"
    assert all(type(token) is int for token in ids)


def test_chat_with_a_system_message(chat):
    ids = PromptTemplate("chat", system="Be brief.").encode(problem("1 + 1?"), chat)
    assert chat.decode(ids).startswith("<s><|start|>system\nBe brief.<|end|>\n<|start|>user\n1 + 1?<|end|>\n")


def test_chat_has_one_bos(chat):
    assert chat("x")["input_ids"][0] == chat.bos_token_id  # the tokenizer adds one by itself
    assert PromptTemplate("chat").encode(problem(), chat).count(chat.bos_token_id) == 1


def test_base_is_plain_text_with_the_tokenizers_bos(base):
    ids = PromptTemplate("base", "{problem}:").encode(problem("reach 62 from 3, 9"), base)
    assert base.decode(ids) == "<s>reach 62 from 3, 9:"
    assert PromptTemplate("base", "{problem}:").encode(problem("7"), build_tokenizer(start="")) == ids_of("7:", base)


def ids_of(text, tokenizer):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["chat", "base"])
def test_braces_survive(kind, chat):
    template = PromptTemplate(kind, "{problem}\nGive \\boxed{} {x}.")
    assert f"{LATEX}\nGive \\boxed{{}} {{x}}." in chat.decode(template.encode(problem(), chat))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: "<" not in text))
def test_any_problem_text_survives(text):
    tokenizer = build_tokenizer(CHAT)
    assert PAPER_BASE.encode(problem(text), tokenizer) == [0, *ids_of(PAPER_BASE.fill(problem(text)), tokenizer)]
    assert text in tokenizer.decode(BOXED_CHAT.encode(problem(text), tokenizer))


def test_named_templates():
    assert PAPER_BASE.fill(problem("Q")) == (
        "User:\nQ\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:\n"
    )
    assert BOXED_CHAT.fill(problem("Q")) == "Q\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert (PAPER_BASE.kind, BOXED_CHAT.kind) == ("base", "chat")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "Solve it."}, r"data\.template\.text must contain \{problem\} exactly once"),
        ({"text": "{problem} {problem}"}, "exactly once"),
        ({"kind": "base", "system": "Be brief."}, r"data\.template\.system needs data\.template\.kind 'chat'"),
        ({"kind": "instruct"}, r"data\.template\.kind must be 'chat' or 'base', got 'instruct'"),
    ],
)
def test_bad_templates_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PromptTemplate(**arguments)


def test_chat_without_a_chat_template_names_the_key(base):
    with pytest.raises(ValueError, match=r"data\.template\.kind is 'chat'.*no chat template.*kind 'base'"):
        PromptTemplate("chat").encode(problem(), base)


def test_two_bos_are_refused(base):
    with pytest.raises(ValueError, match="starts with <s> twice"):
        PromptTemplate("base", "<s>{problem}").encode(problem(), base)


@pytest.mark.parametrize(
    ("template", "end"), [(PromptTemplate("base"), " </s>"), (PromptTemplate("base", "{problem}</s>"), "")]
)
def test_a_prompt_that_ends_with_eos_is_refused(template, end):
    with pytest.raises(ValueError, match="ends with </s>"):
        template.encode(problem(), build_tokenizer(end=end))
