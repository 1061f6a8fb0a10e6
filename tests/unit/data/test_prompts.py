from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokens import build_tokenizer

from forklight.data.prompts import BOXED_CHAT, PAPER_BASE, Example, PromptTemplate
from forklight.types import Problem

CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
LATEX = r"Let $f(x)=\frac{x}{2}$ and {problem} or {0} {{}} %s; find \boxed{f(3)}."


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


# -- chats, examples, prefill ------------------------------------------------------------------------------------------

TURNS = (("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "And 2 + 2?"))
TALK = replace(Problem.make("a talk", "4", "test"), chat=TURNS)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system\nrole') }}{% endif %}" + CHAT
LEAVES_OUT = CHAT.replace("messages %}", "messages if message['role'] != 'system' %}")
THINKS = CHAT.replace(
    "assistant\n{% endif", "assistant\n{% if think is defined and think %}<think>\n{% endif %}{% endif"
)


def shown(template, tokenizer, of=None):
    return tokenizer.decode(template.encode(of or problem("1 + 1?"), tokenizer))


def test_a_chat_stays_as_it_is(chat):
    said = "".join(f"<|start|>{role}\n{text}<|end|>\n" for role, text in TURNS)
    assert shown(PromptTemplate("chat"), chat, TALK) == f"<s>{said}<|start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (PromptTemplate("base"), "kind is 'base', but the problem .* is a chat of 4 messages"),
        (BOXED_CHAT, r"data\.template\.text = .* is a chat, whose turns stay as they are"),
        (PromptTemplate(system="Think."), r"data\.template\.system: the problem .* system message of its own"),
    ],
)
def test_what_a_chat_has_no_place_for_is_refused(template, message, chat):
    with pytest.raises(ValueError, match=message):
        template.encode(TALK, chat)


def test_examples_come_between_the_system_message_and_the_problem(chat):
    template = PromptTemplate("chat", "Q: {problem}", "Be brief.", few_shot=(Example("2 + 2?", "4"),))
    turns = [("system", "Be brief."), ("user", "Q: 2 + 2?"), ("assistant", "4"), ("user", "Q: 1 + 1?")]
    said = "".join(f"<|start|>{role}\n{text}<|end|>\n" for role, text in turns)
    assert shown(template, chat) == f"<s>{said}<|start|>assistant\n"
    own = shown(PromptTemplate(few_shot=(Example("2 + 2?", "4"),)), chat, TALK)
    assert own.startswith("<s><|start|>system\nBe brief.<|end|>\n<|start|>user\n2 + 2?<|end|>\n<|start|>assistant\n4")


@pytest.mark.parametrize("chat_template", [NO_SYSTEM, LEAVES_OUT], ids=["refuses", "leaves out"])
def test_without_a_system_role_the_message_goes_into_the_users(chat_template, caplog):
    tokenizer = build_tokenizer(chat_template)
    tokenizer.name_or_path = f"models/{len(chat_template)}"
    for _ in range(2):
        text = shown(PromptTemplate(system="Be brief."), tokenizer)
        assert text == "<s><|start|>user\nBe brief.\n\n1 + 1?<|end|>\n<|start|>assistant\n"
    assert shown(PromptTemplate(), tokenizer, TALK).startswith("<s><|start|>user\nBe brief.\n\n1 + 1?<|end|>")
    assert caplog.text.count("has no system role") == 1


def test_a_chat_template_that_fails_is_one_line():
    tokenizer = build_tokenizer("{{ raise_exception('roles must\n  alternate') }}")
    with pytest.raises(ValueError, match=r"^data\.template: the chat template of .* fails: .*roles must alternate$"):
        PromptTemplate().encode(problem(), tokenizer)


def test_variables_of_a_chat_template():
    tokenizer = build_tokenizer(THINKS)
    assert shown(PromptTemplate(chat_template_kwargs={"think": True}), tokenizer).endswith("assistant\n<think>\n")
    assert shown(PromptTemplate(), tokenizer).endswith("assistant\n")
    with pytest.raises(ValueError, match=r"data\.template\.chat_template_kwargs\.thinks: .* does not read it"):
        PromptTemplate(chat_template_kwargs={"thinks": True}).encode(problem(), tokenizer)


@pytest.mark.parametrize(
    ("template", "begun"),
    [
        (PromptTemplate(), ""),
        (PromptTemplate(chat_template_kwargs={"think": True}), "<think>\n"),
        (PromptTemplate(prefill="<think>\nFirst,"), "<think>\nFirst,"),
        (PromptTemplate(chat_template_kwargs={"think": True}, prefill="So"), "<think>\nSo"),
        (PromptTemplate(prefill="\\boxed{"), "\\boxed{"),
        (PromptTemplate(text="{problem} Write <think> first."), ""),
        (PromptTemplate("base", "Think in <think> tags. {problem}\nAssistant: <think>"), "<think>"),
        (PromptTemplate("base", "{problem} <think> and </think>"), ""),
        (PromptTemplate("base", "{problem} <think> and"), ""),
    ],
)
def test_what_the_prompt_has_begun_of_the_answer(template, begun):
    tokenizer = build_tokenizer(THINKS)
    (prompt,) = template.prompts([problem("1 + 1?")], tokenizer)
    assert prompt.begun == begun
    assert tokenizer.decode(prompt.token_ids).endswith(begun)


@pytest.mark.parametrize(
    "key", [{"prefill": "x"}, {"few_shot": (Example("a", "b"),)}, {"chat_template_kwargs": {"a": 1}}], ids=str
)
def test_keys_of_a_chat_are_refused_for_a_base_template(key):
    with pytest.raises(ValueError, match=rf"data\.template\.{next(iter(key))} needs data\.template\.kind 'chat'"):
        PromptTemplate("base", **key)
