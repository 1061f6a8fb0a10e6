import contextlib
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import EOS, VOCABULARY, load, poison, write_model
from transformers import AutoModelForCausalLM, Lfm2Config

from forklight.algo.noise import hash_uniform
from forklight.models.loading import PolicyConfig, eos_ids, load_tokenizer
from forklight.sampling import hf
from forklight.sampling.base import Sampler, SamplingParams
from forklight.sampling.hf import HFSampler
from forklight.sampling.inverse_cdf import _TILE_ELEMENTS, draw

PROMPTS = [[5, 9, 33], [7], [12, 3, 44, 8, 21, 30, 2], [9, 9], [40, 41, 42, 43]]
KEYS = [11, -(2**63), 2**63 - 1, 0, 123456789]
LENGTH = 12


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def policy(path):
    return load(path, "float32")


def sampled(
    policy, prompts, keys, answers=1, *, length=LENGTH, temperature=1.0, eos=(EOS,), batch_size=512, **truncation
):
    sampler = HFSampler(batch_size)
    sampler.sync(policy)
    return sampler.sample(prompts, keys, answers, SamplingParams(length, temperature, eos, **truncation))


def sample(*args, **settings):
    """The tokens alone."""
    return [[answer.token_ids for answer in group] for group in sampled(*args, **settings)]


def plain_logp(policy, prompt, answer, temperature):
    """Log-probabilities `[T,V]` of one plain forward pass over prompt and answer: no cache, no padding."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1)


def noise_of(rows, seed=0):
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_is_a_sampler():
    assert isinstance(HFSampler(), Sampler)
    with pytest.raises(ValueError, match=r"sampler\.batch_size = 0"):
        HFSampler(0)


# -- answers belong to their key ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 9, 16])
def test_answers_do_not_depend_on_the_batch_size(policy, batch_size):
    whole = sample(policy, PROMPTS, KEYS, 4)
    assert len({tuple(ids) for group in whole for ids in group}) > 15
    assert sample(policy, PROMPTS, KEYS, 4, batch_size=batch_size) == whole


def test_answers_do_not_depend_on_order_company_or_padding(policy):
    whole = sample(policy, PROMPTS, KEYS, 3)
    backwards = sample(policy, PROMPTS[::-1], KEYS[::-1], 3)
    assert backwards[::-1] == whole
    for prompt, key, group in zip(PROMPTS, KEYS, whole, strict=True):
        assert sample(policy, [prompt], [key], 3) == [group]
        assert sample(policy, [[2] * 30, prompt], [99, key], 3)[1] == group


def test_an_answer_does_not_depend_on_how_many_there_are(policy):
    many = sample(policy, PROMPTS, KEYS, 6)
    for answers in (1, 2, 5):
        assert sample(policy, PROMPTS, KEYS, answers) == [group[:answers] for group in many]


def test_another_key_gives_other_answers_to_the_same_prompt(policy):
    first, second, same = sample(policy, [PROMPTS[0]] * 3, [1, 2, 1], 4)
    assert first == same
    assert all(a != b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("prompts", [PROMPTS, [prompt[:1] * 3 for prompt in PROMPTS]])
def test_long_answers_do_not_depend_on_the_batch_size(path, prompts):
    """More tokens than storage has room for at first; answers leave the batch at many positions."""
    policy, ends = load(path), (EOS, 3, 6)
    whole = sampled(policy, prompts, KEYS, 4, length=80, eos=ends)
    lengths = {len(answer.token_ids) for group in whole for answer in group}
    assert len(lengths) > 6
    assert max(lengths) == 80
    again = sampled(policy, prompts, KEYS, 4, length=80, eos=ends, batch_size=8)
    for group, expected in zip(again, whole, strict=True):
        for answer, other in zip(group, expected, strict=True):
            assert answer.token_ids == other.token_ids
            assert list(answer.logp) == pytest.approx(list(other.logp), abs=1e-6)


# -- what is sampled ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_every_token_is_the_inverse_cdf_of_its_noise_under_the_whole_model(policy, temperature):
    """The logits come from one plain forward pass over prompt and answer: no cache, no padding, no rows that leave."""
    checked = 0
    for prompt, key, group in zip(
        PROMPTS, KEYS, sample(policy, PROMPTS, KEYS, 4, temperature=temperature), strict=True
    ):
        for number, answer in enumerate(group):
            probability = plain_logp(policy, prompt, answer, temperature).exp()
            cdf = torch.nn.functional.pad(probability.cumsum(-1), (1, 0))
            noise = hash_uniform(key, number, torch.arange(len(answer)))
            at = torch.arange(len(answer)), torch.tensor(answer)
            assert (cdf[at] - 1e-5 <= noise).all()
            assert (noise <= cdf[at[0], at[1] + 1] + 1e-5).all()
            checked += len(answer)
    assert checked > 100


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_are_distributed_as_the_softmax(policy, temperature):
    answers = 4000
    drawn = torch.tensor(sample(policy, PROMPTS[:1], [17], answers, length=1, temperature=temperature)).flatten()
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1]
    expected = answers * (logits.double() / temperature).softmax(-1)
    seen = torch.bincount(drawn, minlength=VOCABULARY)
    often = expected >= 5
    cells = [torch.cat([counts[often], counts[~often].sum().view(1)]) for counts in (seen.double(), expected)]
    statistic = ((cells[0] - cells[1]).square() / cells[1]).sum()
    freedom = len(cells[0]) - 1
    assert freedom > 3
    # the 99.9 % quantile of chi-square by Wilson and Hilferty's approximation
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_temperature_0_is_greedy(policy):
    for prompt, [answer] in zip(PROMPTS, sample(policy, PROMPTS, KEYS, temperature=0.0), strict=True):
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + LENGTH and EOS not in ids[len(prompt) :]:
                ids.append(int(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert prompt + answer == ids
    again = sample(policy, PROMPTS, KEYS[::-1], temperature=0.0)
    assert again == sample(policy, PROMPTS, KEYS, temperature=0.0)


# -- where answers end -------------------------------------------------------------------------------------------------


def test_an_answer_ends_with_its_first_eos_or_at_the_limit(policy):
    ends = (EOS, 4, 17, 29)
    answers = [ids for group in sample(policy, PROMPTS, KEYS, 8, eos=ends) for ids in group]
    assert len({ids[-1] for ids in answers} & set(ends)) > 1
    for ids in answers:
        assert not set(ids[:-1]) & set(ends)
        assert len(ids) == LENGTH or ids[-1] in ends
    assert any(ids[-1] not in ends for ids in answers)


def test_more_eos_tokens_only_cut_the_same_answers(policy):
    def cut(ids, ends):
        return ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))]

    uncut = sample(policy, PROMPTS, KEYS, 6, eos=())
    assert all(len(ids) == LENGTH for group in uncut for ids in group)
    for ends in ((EOS,), (EOS, 4, 17), tuple(range(2, 40))):
        assert sample(policy, PROMPTS, KEYS, 6, eos=ends) == [[cut(ids, ends) for ids in group] for group in uncut]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_lower_limit_only_cuts_the_same_answers(policy, length):
    longer = sample(policy, PROMPTS, KEYS, 3)
    assert sample(policy, PROMPTS, KEYS, 3, length=length) == [[ids[:length] for ids in group] for group in longer]


# -- the model's folder and mode ---------------------------------------------------------------------------------------


def test_generation_settings_change_nothing_but_the_eos_tokens(policy, tmp_path):
    folder = write_model(tmp_path)
    poison(
        tmp_path,
        eos_token_id=[EOS, 6, 8],
        do_sample=True,
        temperature=0.1,
        top_k=1,
        top_p=0.01,
        min_p=0.9,
        repetition_penalty=5.0,
        max_length=3,
        max_new_tokens=1,
        suppress_tokens=list(range(2, 40)),
        begin_suppress_tokens=[3],
        no_repeat_ngram_size=1,
    )
    poisoned = load(folder, "float32")
    assert sample(poisoned, PROMPTS, KEYS, 4) == sample(policy, PROMPTS, KEYS, 4)
    config = PolicyConfig(path=folder)
    ends = eos_ids(config, load_tokenizer(config))
    assert ends == (EOS, 6, 8)
    assert any(ids[-1] in (6, 8) for group in sample(poisoned, PROMPTS, KEYS, 8, eos=ends) for ids in group)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_training_mode_and_gradient_checkpointing_change_nothing(policy, path, checkpointing, training):
    other = load(path, "float32", gradient_checkpointing=checkpointing)
    other.model.train(training)
    assert sample(other, PROMPTS, KEYS, 2) == sample(policy, PROMPTS, KEYS, 2)
    assert other.model.training == training
    assert not any(parameter.grad is not None for parameter in other.parameters())


def test_sync_follows_the_weights(path):
    policy = load(path, "float32")
    before = sample(policy, PROMPTS, KEYS, 2)
    sampler = HFSampler()
    sampler.sync(policy)
    with torch.no_grad():
        policy.head_weight.mul_(-1)
    decoding = SamplingParams(LENGTH, 1.0, (EOS,))
    after = sampler.sample(PROMPTS, KEYS, 2, decoding)
    assert [[answer.token_ids for answer in group] for group in after] != before
    with torch.no_grad():
        policy.head_weight.mul_(-1)
    again = sampler.sample(PROMPTS, KEYS, 2, decoding)
    assert [[answer.token_ids for answer in group] for group in again] == before


def test_casts_of_weights_kept_under_autocast_change_no_answer_and_reach_no_training(path, monkeypatch):
    policy = load(path, "float32")

    def decode():
        # as Lightning's precision plugin opens it
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return sampled(policy, PROMPTS, KEYS, 2)

    before = decode()
    monkeypatch.setattr(hf, "_casting_weights_once", lambda device: contextlib.nullcontext())
    assert before == decode()
    monkeypatch.undo()
    with torch.autocast("cpu", torch.bfloat16):
        before_training = sampled(policy, PROMPTS, KEYS, 2)
        assert before_training == before
        policy.body(input_ids=torch.tensor(PROMPTS[:1])).last_hidden_state.float().sum().backward()
    assert policy.body.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    with torch.no_grad():
        policy.head_weight.mul_(-1)
    assert decode() != before


# -- inverse CDF -------------------------------------------------------------------------------------------------------


def test_draw_never_reaches_tokens_of_probability_0():
    weight = torch.tensor([[-2e4], [1.0], [-2e4], [0.0], [-2e4]])
    uniform = torch.tensor([0.0, 0.3, 0.9, 1 - 2**-53], dtype=torch.float64)
    tokens, logp = draw(torch.ones(4, 1), weight, uniform, 1.0)
    assert tokens.tolist() == [1, 1, 3, 3]  # softmax is 0.731 on token 1, 0.269 on token 3
    assert logp.tolist() == pytest.approx([-0.3132616875182228] * 2 + [-1.3132616875182228] * 2, rel=1e-15)
    assert draw(torch.ones(4, 1), weight, uniform, 0.05)[0].tolist()[:3] == [1, 1, 1]
    tokens, logp = draw(torch.ones(4, 1), weight, uniform, 0.0)
    assert tokens.tolist() == [1] * 4
    assert logp.tolist() == [0.0] * 4


def test_draw_in_tiles_is_draw_in_one(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(23, 4, generator=generator), torch.randn(9, 4, generator=generator)
    for truncation in ({}, {"top_p": 0.7}, {"top_k": 3}):
        pair = partial(draw, hidden, weight, noise_of(23), 0.8, **truncation)
        whole = pair()
        with monkeypatch.context() as patch:
            patch.setattr("forklight.sampling.inverse_cdf._LOGITS_ELEMENTS", 9 * 4)
            patch.setitem(_TILE_ELEMENTS, "cpu", 9 * 3)
            tiled = pair()
        assert torch.equal(tiled[0], whole[0])
        torch.testing.assert_close(tiled[1], whole[1], rtol=1e-6, atol=1e-6)  # another product kernel


# -- log-probabilities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_draw_tells_the_log_softmax_of_the_token(dtype, tolerance, temperature):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    token, logp = draw(hidden.to(dtype), weight.to(dtype), noise_of(200), temperature)
    expected = (hidden @ weight.T / temperature).log_softmax(-1).gather(1, token[:, None]).squeeze(1)
    assert logp.dtype == torch.float64
    assert len(token.unique()) > 30
    torch.testing.assert_close(logp, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 2**-24), ("float32", 1e-5)])
def test_every_answer_tells_the_log_probabilities_of_a_plain_forward(path, dtype, tolerance, temperature):
    """Ragged prompts, rows that leave early; answers are kept in single precision, which float64 meets by rounding."""
    policy, lowest = load(path, dtype), 0.0
    for prompt, group in zip(PROMPTS, sampled(policy, PROMPTS, KEYS, 4, temperature=temperature), strict=True):
        for answer in group:
            ids = answer.token_ids
            assert len(answer.logp) == len(ids)
            assert answer.logp.itemsize == 4
            expected = plain_logp(policy, prompt, ids, temperature)[torch.arange(len(ids)), ids]
            torch.testing.assert_close(
                torch.tensor(answer.logp, dtype=torch.float64), expected, rtol=tolerance, atol=tolerance
            )
            lowest = min(lowest, *answer.logp)
    assert lowest < -2


def test_greedy_answers_are_certain(policy):
    for [answer] in sampled(policy, PROMPTS, KEYS, temperature=0.0):
        assert list(answer.logp) == [0.0] * len(answer.token_ids)


SLIDING = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "use_sliding_window": True,
}


def write_convolutions(folder):
    """A hybrid: one layer keeps the last inputs of a convolution, the other keys and values."""
    config = Lfm2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
        initializer_range=0.5,
        eos_token_id=EOS,
        bos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("write", "attention"),
    [
        (write_model, "eager"),
        (partial(write_model, **SLIDING), "sdpa"),
        (partial(write_model, **SLIDING), "eager"),
        (write_convolutions, "sdpa"),
    ],
)
def test_other_kinds_of_layers_are_sampled_from_the_whole_model_too(tmp_path, write, attention):
    policy = load(write(tmp_path), "float32", attention=attention)
    groups = sampled(policy, PROMPTS, KEYS, 4, length=30)
    assert sum(len(answer.token_ids) for group in groups for answer in group) > 150
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for ids, logp in group:
            expected = plain_logp(policy, prompt, ids, 1.0)[torch.arange(len(ids)), ids]
            torch.testing.assert_close(torch.tensor(logp, dtype=torch.float64), expected, rtol=3e-5, atol=3e-5)


# -- logits that are not finite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("settings", [(1.0, {}), (0.0, {}), (1.0, {"top_p": 0.7}), (1.0, {"top_k": 3})])
def test_a_row_of_logits_that_are_not_finite_has_no_log_probability(bad, settings):
    temperature, truncation = settings
    hidden = torch.tensor([[1.0], [bad], [-0.5]])
    weight = torch.tensor([[0.3], [-1.0], [0.0], [2.0]])
    token, logp = draw(hidden, weight, noise_of(3), temperature, **truncation)
    assert logp.isnan().tolist() == [False, True, False]
    assert 0 <= token[1] < 4
    healthy = draw(hidden[[0, 2]], weight, noise_of(3)[[0, 2]], temperature, **truncation)
    assert torch.equal(token[[0, 2]], healthy[0])
    assert torch.equal(logp[[0, 2]], healthy[1])


def test_tokens_that_logits_of_minus_infinity_rule_out_are_no_error():
    weight = torch.tensor([[-torch.inf], [1.0], [-torch.inf], [0.0]])
    for temperature in (0.0, 1.0):
        token, logp = draw(torch.ones(50, 1), weight, noise_of(50), temperature)
        assert set(token.tolist()) <= {1, 3}
        assert logp.isfinite().all()


@pytest.mark.parametrize("batch_size", [4, 16, 512])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_ends_where_its_logits_are_not_finite(tmp_path, temperature, batch_size):
    """After one word the policy is lost; answers without it are as ever, in blocks and while rows leave the batch."""
    policy = load(write_model(tmp_path, tie_word_embeddings=False), "float32")
    settings = {"temperature": temperature, "batch_size": batch_size}
    healthy = sampled(policy, PROMPTS, KEYS, 4, **settings)
    heads = [ids[:-1] for group in healthy for ids, _ in group]
    unasked = set(range(2, VOCABULARY)).difference(*PROMPTS)
    word = max(unasked, key=lambda token: sum(token in ids for ids in heads))
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[word] = torch.nan
    lost = 0
    for group, expected in zip(sampled(policy, PROMPTS, KEYS, 4, **settings), healthy, strict=True):
        for (ids, logp), (healthy_ids, healthy_logp) in zip(group, expected, strict=True):
            if word not in healthy_ids[:-1]:
                assert ids == healthy_ids
                assert list(logp) == pytest.approx(list(healthy_logp), abs=1e-5)
                continue
            last = healthy_ids.index(word) + 1
            assert len(ids) == len(logp) == last + 1
            assert ids[:last] == healthy_ids[:last]
            assert [math.isnan(value) for value in logp] == [False] * last + [True]
            lost += 1
    assert 0 < lost < 20


# -- top-k and top-p ---------------------------------------------------------------------------------------------------


def kept(probability, top_p, top_k):
    """The tokens that may be drawn, one by one: most probable first, the lower id first among equals."""
    ranked = sorted(range(len(probability)), key=lambda token: (-probability[token], token))
    ranked = ranked[:top_k] if top_k else ranked
    whole, reached, tokens = sum(probability[token] for token in ranked), 0.0, []
    for token in ranked:
        tokens.append(token)
        reached += probability[token] / whole
        if reached >= top_p:
            break
    return tokens


def head_for(probability):
    """One hidden unit whose logits are the logarithms of the probabilities."""
    return torch.tensor(probability, dtype=torch.float64).log()[:, None]


@pytest.mark.parametrize(
    ("top_p", "top_k", "tokens"),
    [
        (1.0, 0, {0, 1, 2, 3, 4}),
        (1.0, 1, {1}),
        (1.0, 2, {1, 2}),  # 2 and 4 are equal: the lower id
        (1.0, 3, {1, 2, 4}),
        (1.0, 99, {0, 1, 2, 3, 4}),
        (1e-9, 0, {1}),
        (0.29, 0, {1}),
        (0.31, 0, {1, 2}),
        (0.69, 0, {1, 2, 4}),
        (0.71, 0, {0, 1, 2, 4}),
        (0.71, 3, {1, 2}),  # top-p sees what top-k has renormalised: 3/7 + 2/7 reach 0.71
        (0.72, 3, {1, 2, 4}),
        (0.59, 2, {1}),
    ],
)
def test_only_the_allowed_tokens_are_drawn_with_renormalised_probabilities(top_p, top_k, tokens):
    probability = [0.15, 0.3, 0.2, 0.15, 0.2]
    token, logp = draw(
        torch.ones(3000, 1).double(), head_for(probability), noise_of(3000), 1.0, top_p=top_p, top_k=top_k
    )
    assert set(token.tolist()) == tokens
    whole = sum(probability[i] for i in tokens)
    expected = torch.tensor(probability, dtype=torch.float64)[token].div(whole).log()
    torch.testing.assert_close(logp, expected, rtol=1e-12, atol=1e-12)
    for i in tokens:
        assert (token == i).double().mean() == pytest.approx(probability[i] / whole, abs=0.04)


@given(
    weights=st.lists(st.integers(1, 6), min_size=2, max_size=12),
    top_p=st.floats(0.01, 1.0),
    top_k=st.integers(0, 14),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_a_truncated_draw_is_the_inverse_cdf_over_the_allowed_tokens(weights, top_p, top_k, uniform):
    probability = [weight / sum(weights) for weight in weights]
    allowed = kept(probability, top_p, top_k)
    edge = kept(probability, top_p - 1e-9, top_k), kept(probability, min(1.0, top_p + 1e-9), top_k)
    token, logp = draw(
        torch.ones(1, 1).double(),
        head_for(probability),
        torch.tensor([uniform]).double(),
        1.0,
        top_p=top_p,
        top_k=top_k,
    )
    if edge[0] != edge[1]:  # a sum that equals top_p but for rounding: one token more or less
        assert token in edge[0] + edge[1]
        return
    whole = sum(probability[i] for i in allowed)
    assert token in allowed
    assert logp.item() == pytest.approx(torch.tensor(probability[token] / whole).double().log().item(), abs=1e-6)
    below = sum(probability[i] for i in allowed if i < token) / whole
    assert below - 1e-9 <= uniform <= below + probability[token] / whole + 1e-9


@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 0), (1.0, 40), (0.8, 40), (0.5, 700)])
def test_a_truncated_draw_from_a_large_vocabulary_is_that_of_sorting_it(top_p, top_k):
    """Peaked rows, a flat one whose set is large, one with ties throughout and one that is not finite."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 4000, generator=generator, dtype=torch.float64) * torch.tensor(
        [[3], [3], [4], [0.1], [2], [1]]
    )
    logits[4] = logits[4].round()
    hidden = torch.eye(6, dtype=torch.float64)
    hidden[5] = torch.nan
    token, logp = draw(hidden, logits.T, noise_of(6), 1.0, top_p=top_p, top_k=top_k)
    assert logp.isnan().tolist() == [False] * 5 + [True]
    probability = logits.softmax(-1)
    for row in range(5):
        allowed = torch.zeros(4000, dtype=torch.float64)
        allowed[kept(probability[row].tolist(), top_p, top_k)] = 1
        cut = probability[row] * allowed / (probability[row] * allowed).sum()
        assert token[row] == torch.searchsorted(cut.cumsum(-1), noise_of(6)[row], right=True)
        assert logp[row].item() == pytest.approx(cut[token[row]].log().item(), abs=1e-9)


def test_truncation_that_cuts_nothing_changes_no_token(policy):
    whole = sample(policy, PROMPTS, KEYS, 4)
    assert sample(policy, PROMPTS, KEYS, 4, top_k=VOCABULARY) == whole
    assert sample(policy, PROMPTS, KEYS, 4, top_k=1) == sample(policy, PROMPTS, KEYS, 4, temperature=0.0)
    assert sample(policy, PROMPTS, KEYS, 4, top_p=0.5) != whole


@pytest.mark.parametrize("truncation", [{"top_p": 0.6}, {"top_k": 3}, {"top_p": 0.8, "top_k": 4}])
def test_truncated_answers_keep_to_the_set_of_every_position(path, truncation):
    policy, cut = load(path), 0
    settings = {"top_p": 1.0, "top_k": 0} | truncation
    for prompt, group in zip(PROMPTS, sampled(policy, PROMPTS, KEYS, 4, temperature=0.8, **truncation), strict=True):
        for ids, logp in group:
            probabilities = plain_logp(policy, prompt, ids, 0.8).exp().tolist()
            for token, reported, probability in zip(ids, logp, probabilities, strict=True):
                allowed = kept(probability, **settings)
                whole = sum(probability[i] for i in allowed)
                assert token in allowed
                assert reported == pytest.approx(torch.tensor(probability[token] / whole).log().item(), abs=1e-6)
                cut += len(allowed) < VOCABULARY
    assert cut > 30


@pytest.mark.parametrize(
    ("truncation", "match"),
    [({"top_p": 0.0}, "top_p = 0.0"), ({"top_p": 1.1}, "top_p = 1.1"), ({"top_k": -1}, "top_k = -1")],
)
def test_truncation_that_leaves_nothing_is_an_error(truncation, match):
    with pytest.raises(ValueError, match=match):
        SamplingParams(LENGTH, 1.0, (EOS,), **truncation)
