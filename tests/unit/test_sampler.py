import pytest
import torch
from tiny import EOS, VOCABULARY, load, poison, write_model

from forklight.algo.noise import hash_uniform
from forklight.models.policy import PolicyConfig, eos_ids, load_tokenizer
from forklight.rollout.hf import HFSampler, draw
from forklight.rollout.sampler import Decoding, Sampler

PROMPTS = [[5, 9, 33], [7], [12, 3, 44, 8, 21, 30, 2], [9, 9], [40, 41, 42, 43]]
KEYS = [11, -(2**63), 2**63 - 1, 0, 123456789]
LENGTH = 12


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def policy(path):
    return load(path, "float32")


def sample(policy, prompts, keys, answers=1, *, length=LENGTH, temperature=1.0, eos=(EOS,), batch_size=512):
    sampler = HFSampler(batch_size)
    sampler.sync(policy)
    return sampler.sample(prompts, keys, answers, Decoding(length, temperature, eos))


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


# -- what is sampled ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_every_token_is_the_inverse_cdf_of_its_noise_under_the_whole_model(policy, temperature):
    """The logits come from one plain forward pass over prompt and answer: no cache, no padding, no rows that leave."""
    checked = 0
    for prompt, key, group in zip(
        PROMPTS, KEYS, sample(policy, PROMPTS, KEYS, 4, temperature=temperature), strict=True
    ):
        for number, answer in enumerate(group):
            with torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            cdf = torch.nn.functional.pad((logits.double() / temperature).softmax(-1).cumsum(-1), (1, 0))
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
    decoding = Decoding(LENGTH, 1.0, (EOS,))
    after = sampler.sample(PROMPTS, KEYS, 2, decoding)
    assert after != before
    with torch.no_grad():
        policy.head_weight.mul_(-1)
    assert sampler.sample(PROMPTS, KEYS, 2, decoding) == before


# -- inverse CDF -------------------------------------------------------------------------------------------------------


def test_draw_never_reaches_tokens_of_probability_0():
    weight = torch.tensor([[-2e4], [1.0], [-2e4], [0.0], [-2e4]])
    uniform = torch.tensor([0.0, 0.3, 0.9, 1 - 2**-53], dtype=torch.float64)
    tokens = draw(torch.ones(4, 1), weight, uniform, 1.0).tolist()
    assert tokens == [1, 1, 3, 3]  # softmax is 0.731 on token 1, 0.269 on token 3
    assert draw(torch.ones(4, 1), weight, uniform, 0.05).tolist()[:3] == [1, 1, 1]
    assert draw(torch.ones(4, 1), weight, uniform, 0.0).tolist() == [1] * 4


def test_draw_in_tiles_is_draw_in_one(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(23, 4, generator=generator), torch.randn(9, 4, generator=generator)
    uniform = torch.rand(23, generator=generator, dtype=torch.float64)
    whole = draw(hidden, weight, uniform, 0.8)
    monkeypatch.setattr("forklight.rollout.hf._TILE_ELEMENTS", 9 * 4)
    assert torch.equal(draw(hidden, weight, uniform, 0.8), whole)
