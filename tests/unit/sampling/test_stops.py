"""Where stops end answers, for tokenizers of every kind, against decoding every prefix; and the samplers' answers."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import EOS, load, write_model
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from forklight.data.prompts import PromptTemplate
from forklight.models.loading import PolicyConfig, load_tokenizer
from forklight.rollout.config import RolloutConfig
from forklight.rollout.generate import AnswerGenerator
from forklight.rollout.tensors import batch_of_rank
from forklight.sampling.base import SamplingParams
from forklight.sampling.hf import HFSampler
from forklight.sampling.stops import StopCheck
from forklight.types import Problem, Verdict

PIECES = ("a", "b", "c", " ", "\n", ".", "é", "ab", "ba", " a", " c", "c\n", ".\n", "\n\n", "bc.", "éa", "a\nb", "€")


def pieces_tokenizer(tokens, decoder):
    """Tokens that are spelled as given, and two special ones."""
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(BPE(vocabulary, [], ignore_merges=True))
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def byte_level():
    """As of GPT-2 and Qwen: a token is any bytes, also a part of a character with whole ones beside it."""
    spelled = bytes_to_letters()
    pieces = [piece.encode() for piece in PIECES]
    pieces += [bytes([byte]) for byte in "é€".encode()] + [b"\xa9a", b"\xacb\n", b"c\xe2\x82"]
    return pieces_tokenizer(["".join(spelled[byte] for byte in piece) for piece in pieces], decoders.ByteLevel())


def bytes_to_letters():
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def metaspace():
    """As of Llama 2: blanks are marks, the first one goes; characters that are no token are spelled in bytes."""
    tokens = [piece.replace(" ", "▁") for piece in PIECES if "\n" not in piece and piece not in "é€"]
    tokens += ["▁", "▁b", *(f"<0x{byte:02X}>" for byte in "\né€a".encode())]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return pieces_tokenizer(tokens, decoders.Sequence(steps))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def words(path):
    """Every token is a word; texts have blanks between them."""
    return load_tokenizer(PolicyConfig(path=path))


@pytest.fixture(scope="module")
def shipped():
    return load_tokenizer(PolicyConfig(path="tiny"))


TOKENIZERS = {"byte_level": byte_level(), "metaspace": metaspace()}


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


def naive(tokenizer, stop, ids):
    """Decodes every prefix."""
    for length in range(1, len(ids) + 1):
        text = decoded(tokenizer, ids[:length])
        if ids[length - 1] in stop or any(item in text for item in stop if isinstance(item, str)):
            return length
    return None


def ids_of(tokenizer, *texts):
    """The tokens with these texts."""
    found = {decoded(tokenizer, [token]): token for token in range(len(tokenizer))}
    return [found[text] for text in texts]


# -- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "pieces", "length", "text"),
    [
        (["abc"], ["c", "ab", "c\n", "a"], 3, "c"),  # spans tokens, ends within one
        (["bc"], ["ab", "c"], 2, "a"),  # begins within one
        (["\n"], ["a\nb", "\n"], 1, "a"),  # inside of one
        (["\n\n"], ["a", "\n", "c\n", "\n\n"], 4, "a\nc"),  # within and before its last token
        (["é"], ["a", "c", "éa"], 3, "ac"),
        (["b", "ab"], ["c", "ab", "b"], 2, "c"),  # both are completed: the text is that before the first
        (["a", "c"], ["b", "c", "a"], 2, "b"),
        (["abc."], ["ab", "bc."], None, None),
        (["c\na"], ["c\n", "b"], None, None),
    ],
)
def test_an_answer_ends_with_the_first_token_that_completes_a_stop(stop, pieces, length, text):
    tokenizer = byte_level()
    check, ids = StopCheck(stop, tokenizer), ids_of(tokenizer, *pieces)
    assert check.length(ids) == length
    if length is not None:
        assert check.text_before(ids[:length]) == text
        assert check.ends(ids[:length])
        assert not any(check.ends(ids[:before]) for before in range(1, length))


def test_bytes_of_a_character_complete_it(shipped):
    ids = shipped("1 €\n2").input_ids
    assert StopCheck(["€"], shipped).length(ids) == len("1 €".encode())
    assert StopCheck(["€\n"], shipped).text_before(ids[:-1]) == "1 "


def test_special_tokens_are_not_text(shipped):
    newline, pad = shipped("\n").input_ids[0], shipped.pad_token_id
    assert StopCheck(["\n\n"], shipped).length([newline, *[pad] * 20, newline, newline]) == 22


def test_a_stop_token_ends_an_answer_before_its_text(shipped):
    ids = shipped("12 = 3, 45").input_ids
    comma = ids[-2]
    check = StopCheck([comma, shipped.pad_token_id], shipped)
    assert check.length(ids) == len(ids) - 1
    assert check.text_before(ids[:-1]) == "12 = 3"
    assert check.length([*ids[:3], shipped.pad_token_id, 5]) == 4
    assert StopCheck([comma, "= 3"], shipped).length(ids) == len(ids) - 2


def test_only_tokens_that_can_complete_a_stop_are_decoded(shipped):
    check = StopCheck(["\n"], shipped)
    token = torch.tensor([*shipped("12, \n").input_ids, shipped.eos_token_id, len(shipped) + 100])
    assert check.may_end(token).tolist() == [False, False, True, False, False]


# -- against decoding every prefix -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_the_end_is_that_of_decoding_every_prefix(kind, data):
    tokenizer = TOKENIZERS[kind]
    token = st.integers(0, len(tokenizer) - 1)
    ids = data.draw(st.lists(token, min_size=1, max_size=24))
    text = decoded(tokenizer, data.draw(st.sampled_from([ids, ids[::-1]])))
    places = st.integers(0, max(0, len(text) - 1))
    strings = [text[start : start + data.draw(st.integers(1, 6))] for start in data.draw(st.lists(places, max_size=2))]
    strings += data.draw(st.lists(st.text("abc \n.é€", min_size=1, max_size=4), max_size=2))
    strings = [string for string in strings if string and "\ufffd" not in string]
    stop = [*strings, *data.draw(st.lists(token, max_size=1 if strings else 2))]
    assume(stop)
    check, expected = StopCheck(stop, tokenizer), naive(tokenizer, stop, ids)
    assert check.length(ids) == expected
    if expected is not None and ids[expected - 1] not in stop:
        before = check.text_before(ids[:expected])
        whole = decoded(tokenizer, ids[:expected])
        assert whole.startswith(before)
        assert len(before) == min(whole.find(string) for string in strings if string in whole)
    can = check.may_end(torch.tensor(ids)).tolist()
    assert expected is None or can[expected - 1]


# -- what is sampled ---------------------------------------------------------------------------------------------------

PROMPTS = [[5, 9, 33], [7], [12, 3, 44, 8, 21, 30, 2]]
KEYS = [11, -(2**63), 123456789]
LENGTH = 12


@pytest.fixture(scope="module")
def sampler(path):
    engine = HFSampler()
    engine.sync(load(path, "float32"))
    return engine


@settings(max_examples=12)
@given(data=st.data())
def test_a_stop_only_cuts_the_same_answers(sampler, words, data):
    free = sampler.sample(PROMPTS, KEYS, 4, SamplingParams(LENGTH, 1.0, (EOS,)))
    texts = [decoded(words, answer.token_ids) for group in free for answer in group]
    text = data.draw(st.sampled_from([text for text in texts if text]))
    start = data.draw(st.integers(0, len(text) - 1))
    string = text[start : start + data.draw(st.integers(1, 9))]
    stop = [string, *data.draw(st.lists(st.integers(2, 49), max_size=2))]
    stopped = sampler.sample(PROMPTS, KEYS, 4, SamplingParams(LENGTH, 1.0, (EOS,), stops=StopCheck(stop, words)))
    ends = [naive(words, stop, answer.token_ids) for group in free for answer in group]
    assert any(ends)
    pairs = zip(sum(free, []), sum(stopped, []), ends, strict=True)  # noqa: RUF017
    for whole, cut, end in pairs:
        assert cut.token_ids == whole.token_ids[:end]
        assert list(cut.logp) == pytest.approx(list(whole.logp[:end]), abs=1e-5)


class Deaf(HFSampler):
    """Does not know of stops."""

    def sample(self, prompts, keys, answers, decoding):
        return super().sample(prompts, keys, answers, SamplingParams(LENGTH, 1.0, decoding.eos_ids))


class Reading:
    """Keeps what it is asked to judge."""

    def __init__(self):
        self.texts = []

    def verify_many(self, pairs):
        self.texts += [text for text, _ in pairs]
        return [Verdict("right", "read") for _ in pairs]


def answered(engine, tokenizer, stop, length=LENGTH):
    stops = StopCheck(stop, tokenizer) if stop else None
    generator, verifier = AnswerGenerator(engine, tokenizer, (EOS,), seed=3, stops=stops), Reading()
    problems = [Problem.make(f"w{i + 2} w{i + 3}", "", "test") for i in range(6)]
    settings = {"answers": 4, "max_new_tokens": length, "temperature": 1.0, "template": PromptTemplate("base")}
    groups = generator.answer(problems, list(range(6)), 0, verifier=verifier, **settings)
    return groups, [completion for group in groups for completion in group.completions], verifier.texts


def test_stopped_answers_have_ended_and_are_judged_by_what_comes_before(sampler, words):
    stop = ["w4", token := 30]
    groups, completions, texts = answered(sampler, words, stop)
    assert texts == [completion.text for completion in completions]
    kinds = set()
    for completion in completions:
        ids, whole = list(completion.token_ids), decoded(words, list(completion.token_ids))
        end = naive(words, stop, ids)
        assert end in (None, len(ids))
        if end is None:
            assert completion.text == whole
            assert completion.truncated == (ids[-1] != EOS)
        else:
            assert not completion.truncated
            assert completion.text == (decoded(words, ids[:-1]) if ids[-1] == token else whole[: whole.index("w4")])
        kinds.add((end is None, ids[-1] in (token, EOS), completion.truncated))
    assert len(kinds) == 4  # stopped by a string and by a token; ended by EOS and by the limit
    batch = batch_of_rank(groups, torch.ones(6, 4), [(0, 0)] * 6, 0)
    assert batch.truncated.tolist() == [completion.truncated for completion in completions]
    assert batch.answer_length.tolist() == [len(completion.token_ids) for completion in completions]
    assert batch.sampler_logp[batch.answer_mask].isfinite().all()


def test_a_stop_at_the_limit_is_an_end(sampler, words):
    _, completions, _ = answered(sampler, words, ())
    length, stop = next(
        (place + 1, token)
        for completion in completions
        for place, token in enumerate(completion.token_ids)
        if place > 2 and token > EOS and token not in completion.token_ids[:place]
    )
    ends = []
    for stops in ([stop], [f"w{stop}"], ()):
        _, cut, _ = answered(sampler, words, stops, length)
        ends.append([completion.truncated for completion in cut if completion.token_ids[length - 1 :] == (stop,)])
    assert ends[0]
    assert ends == [[False] * len(ends[0]), [False] * len(ends[0]), [True] * len(ends[0])]


def test_answers_of_a_sampler_without_stops_are_cut(sampler, path, words):
    deaf = Deaf()
    deaf.sync(load(path, "float32"))
    stop = ["1 w", "w7", 20]
    assert answered(deaf, words, stop) == answered(sampler, words, stop)
    assert answered(deaf, words, ()) != answered(deaf, words, stop)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ([""], r"rollout\.stop: an empty string"),
        (["\n", -1], r"rollout\.stop: token id -1 must not be negative"),
        ([True], r"rollout\.stop: True must be a string or a token id"),
        ([1.5], r"rollout\.stop: 1\.5 must be"),
        ([None], r"rollout\.stop: None must be"),
    ],
)
def test_stops_that_mean_nothing_are_errors(stop, message):
    with pytest.raises(ValueError, match=message):
        RolloutConfig(stop=tuple(stop))


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ([50], r"rollout\.stop: token 50 is not in the vocabulary of 50 tokens"),
        (["w3", "w2 <eos>"], r"rollout\.stop: 'w2 <eos>' has the special token <eos>, .* its id, 1,"),
        (["\ufffd"], r"rollout\.stop: .* U\+FFFD"),
    ],
)
def test_stops_that_the_tokenizer_never_writes_are_errors(stop, message, words):
    with pytest.raises(ValueError, match=message):
        StopCheck(stop, words)
