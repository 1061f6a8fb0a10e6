import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import forklight.models.tiny
from forklight.data.countdown import CountdownTask, worked_example
from forklight.models.tiny.build import CONTEXT, EOS_TOKEN, PAD_TOKEN, write

FOLDER = Path(forklight.models.tiny.__file__).parent
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)
PIECES = ["reach ", " from ", ", ", " ", ",", ";", "=", "0", "7", "42", "100", "\n", "é", "🙂"]


def comes_back(text: str) -> bool:
    return bool(TOKENIZER.decode(TOKENIZER(text).input_ids) == text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_exactly(text):
    assert comes_back(text)


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_words_numbers_and_blanks_in_any_order_come_back_exactly(text):
    assert comes_back(text)


@pytest.mark.parametrize("text", ["  a b ", "\n\n\r\n\t", "007 1234", "don 't , stop .", "\x00", "reach62from3"])
def test_awkward_text_comes_back_exactly(text):
    assert comes_back(text)


def test_every_whole_number_below_1000_is_one_token():
    assert all(len(TOKENIZER(str(number)).input_ids) == 1 for number in range(1000))


@pytest.mark.parametrize("piece", ["+", "-", "*", "/", "=", ";", ":", "reach ", " from ", ", "])
def test_every_piece_of_problem_and_answer_is_one_token(piece):
    assert len(TOKENIZER(piece).input_ids) == 1


@given(st.integers(0, 10**6), st.sampled_from([3, 4]))
def test_prompt_and_answer_take_the_expected_number_of_tokens(index, numbers):
    example = worked_example(index, CountdownTask(counts=(numbers,)))
    assert len(TOKENIZER(example.prompt).input_ids) == 2 * numbers + 3
    assert len(TOKENIZER(example.answer).input_ids) == 6 * (numbers - 1) - 1


@given(st.integers(0, 1000))
def test_prompt_and_answer_are_the_same_tokens_together_as_apart(index):
    example = worked_example(index)
    apart = TOKENIZER(example.prompt).input_ids + TOKENIZER(example.answer).input_ids
    assert TOKENIZER(example.prompt + example.answer).input_ids == apart


def test_auto_classes_load_the_folder_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (EOS_TOKEN, PAD_TOKEN, None)
    assert not tokenizer.clean_up_tokenization_spaces
    assert tokenizer(EOS_TOKEN).input_ids == [tokenizer.eos_token_id]


def test_config_fits_tokenizer_and_size():
    config = AutoConfig.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 750_000
    assert config.vocab_size == len(TOKENIZER)
    assert (config.eos_token_id, config.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)
    assert config.max_position_embeddings == CONTEXT
    assert config.tie_word_embeddings
    assert config.attention_dropout == 0.0


def test_build_writes_the_committed_files(tmp_path):
    write(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        built, committed = (json.loads((folder / name).read_text()) for folder in (tmp_path, FOLDER))
        built.pop("transformers_version", None)
        committed.pop("transformers_version", None)
        assert built == committed, name
