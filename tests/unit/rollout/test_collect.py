import logging

import pytest
import torch
from tiny import EOS, VOCABULARY, load, on_ranks, write_model

from forklight.algo.advantages import estimate_advantages, group_advantages
from forklight.algo.plan import update_and_rank
from forklight.data.prompts import PromptTemplate
from forklight.data.stream import ProblemStream, PromptBatch
from forklight.distributed import Ranks
from forklight.errors import NonFiniteError
from forklight.models.heads import all_stats
from forklight.models.loading import PolicyConfig, load_tokenizer
from forklight.rollout.collect import Collector
from forklight.rollout.config import RolloutConfig
from forklight.rollout.generate import AnswerGenerator
from forklight.rollout.overlong import soft_overlong
from forklight.sampling.base import Sampled
from forklight.sampling.hf import HFSampler
from forklight.types import Problem, Verdict
from forklight.verify import CountdownVerifier

P, G, LENGTH = 4, 4, 8
TEMPLATE = PromptTemplate("base")


class ByGold:
    """The gold says the outcome; `odd` leaves it to the answer's first word, so that most groups are mixed."""

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        return [Verdict(self.outcome(answer, gold), gold) for answer, gold in pairs]

    @staticmethod
    def outcome(answer, gold):
        if gold != "odd":
            return gold
        words = answer.split()
        return "right" if words and int(words[0].removeprefix("w")) % 2 else "wrong"


def problems_with(*golds, count=40):
    return [
        Problem.make(f"w{i % 40 + 2} " + " ".join(f"w{j + 2}" for j in range(i % 5)), golds[i % len(golds)], f"test{i}")
        for i in range(count)
    ]


class Silent(HFSampler):
    """Keeps log-probabilities to itself, or tells them but for the last token."""

    def __init__(self, policy, last_only=False):
        super().__init__()
        self.sync(policy)
        self.last_only = last_only

    def sample(self, *args):
        groups = super().sample(*args)
        return [[Sampled(ids, logp[:-1] if self.last_only else None) for ids, logp in group] for group in groups]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def policy(path):
    return load(path, "float32")


@pytest.fixture(scope="module")
def engine(path, policy):
    """A synced sampler and the tokenizer of a random policy."""
    sampler = HFSampler()
    sampler.sync(policy)
    return sampler, load_tokenizer(PolicyConfig(path=path))


def generator_of(engine, max_positions=64):
    return AnswerGenerator(*engine, (EOS, 4, 5, 6), seed=3, max_positions=max_positions)


def collector_of(engine, *, ranks=None, advantage="grpo", **settings):
    spec = RolloutConfig(**{"max_new_tokens": LENGTH, **settings})
    return Collector(generator_of(engine), spec, advantage, ranks or Ranks())


def collected(collector, batch, penalty=None):
    """A rollout, with a penalty of every sequence."""
    sampled = collector.sample(batch)
    return collector.finish(sampled, None if penalty is None else penalty(sampled.batch))


def batch_of(problems, *, wanted=P, updates=1, rollout=0, verifier=None):
    """The first micro-batch of a rollout, as the loader stamps it."""
    stream = ProblemStream(problems, seed=1)
    return PromptBatch(
        stream.draw(wanted),
        rollout=rollout,
        micro_batch=0,
        updates=updates,
        micro_batches=1,
        answers=G,
        stream=stream,
        template=TEMPLATE,
        verifier=verifier or ByGold(),
    )


def answered(engine, problems, rollout=0):
    """The groups of the first so many problems of the stream, answered one by one."""
    settings = {"answers": G, "max_new_tokens": LENGTH, "temperature": 1.0, "template": TEMPLATE, "verifier": ByGold()}
    return [
        group
        for draw, problem in enumerate(problems)
        for group in generator_of(engine).answer([problem], [draw], rollout, **settings)
    ]


# -- the batch --------------------------------------------------------------------------------------------------------


def test_a_rollout_holds_what_was_sampled_and_judged(engine):
    rollout = collected(collector_of(engine), batch_of(problems_with("odd", "wrong", "right")))
    x, groups = rollout.batch, rollout.groups
    assert [group.problem_index for group in groups] == list(range(P))
    assert {group.right for group in groups} > {0, G}
    rows = [(group, number) for group in groups for number in range(G)]
    for row, (group, number) in enumerate(rows):
        completion, verdict = group.completions[number], group.verdicts[number]
        prompt, answer = len(group.prompt_ids), len(completion.token_ids)
        assert (x.prompt_length[row], x.answer_length[row]) == (prompt, answer)
        assert x.input_ids[row, : prompt + answer].tolist() == [*group.prompt_ids, *completion.token_ids]
        assert not x.input_ids[row, prompt + answer :].any()
        assert x.rewards[row] == x.right[row] == verdict.right == (verdict.outcome == "right")
        assert x.truncated[row] == completion.truncated == (completion.token_ids[-1] not in (EOS, 4, 5, 6))
        assert x.problem_index[row] == group.problem_index
        assert (completion.uid, completion.index) == (group.problem.uid, number)
        assert not completion.text.endswith("<eos>")
    expected = group_advantages(torch.tensor([[float(v.right) for v in group.verdicts] for group in groups]))
    assert torch.equal(x.advantages, expected.flatten())
    assert torch.equal(x.contributing, torch.tensor([group.mixed for group in groups]).repeat_interleave(G))
    assert x.sequence_id.tolist() == list(range(P * G))
    assert x.truncated.any()
    assert not x.truncated.all()


@pytest.mark.parametrize("name", ["dr_grpo", "batch_std", "rloo", "reinforce_pp", "reinforce_pp_baseline"])
def test_advantages_by_name(engine, name):
    x = collected(collector_of(engine, advantage=name), batch_of(problems_with("odd", "wrong"))).batch
    expected = estimate_advantages(name, x.rewards.view(P, G))
    assert torch.equal(x.advantages, expected.flatten())
    assert not torch.equal(x.advantages, group_advantages(x.rewards.view(P, G)).flatten())
    assert torch.equal(x.contributing, (expected != 0).any(1).repeat_interleave(G))


class Signed:
    """An advantage of one's own: 1 for a right answer and -1 for another."""

    def advantages(self, rewards, values=None):
        return 2 * rewards - 1


def test_advantages_of_ones_own(engine):
    x = collected(collector_of(engine, advantage=Signed()), batch_of(problems_with("odd"))).batch
    assert torch.equal(x.advantages, 2 * x.rewards - 1)
    assert x.contributing.all()


def test_sampler_log_probabilities_are_those_of_the_policy(engine, policy):
    x = collected(collector_of(engine, temperature=0.8), batch_of(problems_with("odd"))).batch
    mask = x.answer_mask
    assert x.sampler_logp.dtype == torch.float32
    assert x.sampler_logp.shape == mask.shape
    assert torch.equal(x.sampler_logp.isnan(), ~mask)
    with torch.no_grad():
        logp = policy(x.micro_batch(torch.arange(P * G)), all_stats, temperature=0.8).logp
    torch.testing.assert_close(x.sampler_logp[mask], logp, rtol=1e-5, atol=1e-5)
    assert logp.min() < -2


def test_a_sampler_may_keep_log_probabilities_to_itself(engine, policy):
    batch = batch_of(problems_with("odd"))
    rollout = collected(collector_of((Silent(policy), engine[1])), batch)
    assert rollout.batch.sampler_logp is None
    reported = collected(collector_of(engine), batch_of(problems_with("odd")))
    assert rollout.groups == reported.groups  # the same answers
    assert torch.equal(rollout.batch.advantages, reported.batch.advantages)


def test_all_ranks_know_that_one_sampler_told_nothing(engine, policy):
    def collect(ranks):
        sampler = Silent(policy) if ranks.rank else engine[0]
        return collected(collector_of((sampler, engine[1]), ranks=ranks), batch_of(problems_with("odd"))).batch

    assert [x.sampler_logp for x in on_ranks(2, collect)] == [None, None]


def test_a_log_probability_too_few_is_an_error(engine, policy):
    with pytest.raises(ValueError, match=r"Silent gives \d+ log-probabilities for answer 0 to problem .* tokens"):
        collected(collector_of((Silent(policy, last_only=True), engine[1])), batch_of(problems_with("odd")))


class Wrong(HFSampler):
    """Tells one log-probability wrong: of the answer with this number to the prompt with this number in the block."""

    def __init__(self, policy, value, prompt, answer, position):
        super().__init__()
        self.sync(policy)
        self.value, self.place = value, (prompt, answer, position)

    def sample(self, *args):
        groups = super().sample(*args)
        prompt, answer, position = self.place
        groups[prompt][answer].logp[position] = self.value
        return groups


def errors_of_two_ranks(collector_on):
    """What each of two ranks raises; a rank left waiting for the other would break the barrier instead."""

    def collect(ranks):
        with pytest.raises(NonFiniteError) as stop:
            collected(collector_on(ranks), batch_of(problems_with("odd"), rollout=7))
        return str(stop.value)

    return on_ranks(2, collect)


@pytest.mark.parametrize("broken", [0, 1])
def test_logits_that_are_not_finite_stop_all_ranks(engine, path, broken):
    policy = load(path, "float32")
    with torch.no_grad():
        policy.model.model.norm.weight[0] = torch.nan
    sampler = HFSampler()
    sampler.sync(policy)
    messages = errors_of_two_ranks(
        lambda ranks: collector_of((sampler if ranks.rank == broken else engine[0], engine[1]), ranks=ranks)
    )
    first = batch_of(problems_with("odd")).problems[broken]  # of the broken rank's share
    assert messages[broken] == (
        f"rollout 7: token 0 of answer 0 to problem {first.uid} was sampled with log-probability nan: "
        "the policy's logits are not finite"
    )
    assert messages[1 - broken].startswith("rollout 7: another rank, token 0 of answer ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_log_probability_that_is_not_finite_stops_all_ranks(engine, policy, value, dynamic):
    def collector_on(ranks):
        sampler = Wrong(policy, value, 1, 2, 0) if ranks.rank else engine[0]
        return collector_of((sampler, engine[1]), ranks=ranks, dynamic_sampling=dynamic)

    messages = errors_of_two_ranks(collector_on)
    uid = batch_of(problems_with("odd")).problems[3].uid  # the second of rank 1
    assert messages[1].startswith(
        f"rollout 7: token 0 of answer 2 to problem {uid} was sampled with log-probability {value}"
    )
    assert messages[0].startswith("rollout 7: another rank, token 0 of answer ")


def test_a_later_token_is_named(engine, policy):
    groups = collected(collector_of(engine), batch_of(problems_with("odd"))).groups
    draw, index = next((i, j) for i in range(P) for j in range(G) if len(groups[i].completions[j].token_ids) > 3)
    sampler = Wrong(policy, float("-inf"), draw, index, 3)
    with pytest.raises(NonFiniteError) as stop:
        collected(collector_of((sampler, engine[1])), batch_of(problems_with("odd")))
    uid = groups[draw].problem.uid
    assert (
        str(stop.value)
        == f"rollout 0: token 3 of answer {index} to problem {uid} was sampled with log-probability -inf"
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_in_an_evaluation_the_error_has_problem_and_position(engine, path, temperature):
    policy = load(path, "float32")
    with torch.no_grad():
        policy.model.model.norm.weight[0] = torch.nan
    sampler, problems = HFSampler(batch_size=1), problems_with("odd", count=3)
    sampler.sync(policy)
    settings = {"answers": 2, "max_new_tokens": LENGTH, "template": TEMPLATE, "verifier": ByGold()}
    with pytest.raises(
        NonFiniteError, match=f"^token 0 of answer 0 to problem {problems[0].uid} .*logits are not finite"
    ):
        generator_of((sampler, engine[1])).answer(problems, [0] * 3, 0, temperature=temperature, **settings)


def test_countdown_answers_are_judged_by_their_verifier(engine):
    problems = [Problem.make("w2 w3", "5 from 2, 3", f"countdown{i}") for i in range(P)]
    rollout = collected(collector_of(engine), batch_of(problems, verifier=CountdownVerifier()))
    assert rollout.metrics["rollout/reward"] == rollout.metrics["rollout/contributing"] == 0
    assert rollout.metrics["rollout/solved_none"] == 1
    assert {verdict.outcome for group in rollout.groups for verdict in group.verdicts} == {"wrong"}


def test_noise_belongs_to_rollout_and_draw(engine):
    """The same problem, drawn twice or in another rollout, gets other answers; the same rollout gets the same."""
    one = problems_with("odd", count=1)
    first, again, later = (collected(collector_of(engine), batch_of(one, rollout=n)).groups for n in (0, 0, 1))
    assert first == again
    answers = [[completion.token_ids for completion in group.completions] for group in first + later]
    assert all(a != b for i, a in enumerate(answers) for b in answers[:i])


def test_metrics_are_shares_of_the_kept_groups(engine):
    rollout = collected(collector_of(engine), batch_of(problems_with("right", "unjudged", "wrong", "odd"), wanted=8))
    verdicts = [verdict.outcome for group in rollout.groups for verdict in group.verdicts]
    metrics = rollout.metrics
    for outcome in ("right", "unjudged"):
        assert metrics[f"rollout/{outcome}"] == verdicts.count(outcome) / len(verdicts) > 0
    unjudged = torch.tensor([outcome == "unjudged" for outcome in verdicts])
    assert not rollout.batch.rewards[unjudged].any()
    x = rollout.batch
    assert metrics["rollout/truncated"] == pytest.approx(x.truncated.double().mean().item())
    assert metrics["rollout/answer_tokens"] == pytest.approx(x.answer_length.double().mean().item())
    assert metrics["rollout/answer_tokens_max"] == x.answer_length.max()
    assert metrics["rollout/contributing"] == sum(group.mixed for group in rollout.groups) / 8
    assert metrics["rollout/solved_all"] == sum(group.right == G for group in rollout.groups) / 8
    assert metrics["rollout/problems_drawn"] == 8
    assert metrics["rollout/surplus_groups"] == metrics["rollout/masked_groups"] == 0
    assert metrics["rollout/epoch"] == 8 / 40


# -- updates and ranks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("updates", [1, 2])
def test_two_ranks_collect_what_one_does(engine, updates, dynamic):
    def collect(ranks):
        batch = batch_of(problems_with("odd", "wrong", "odd"), wanted=8, updates=updates)
        return collected(collector_of(engine, ranks=ranks, dynamic_sampling=dynamic), batch)

    alone, together = collect(Ranks()), on_ranks(2, collect)
    places = update_and_rank(8, updates, 2)
    x, found = alone.batch, []
    for rank, rollout in enumerate(together):
        assert rollout.groups == alone.groups
        share = rollout.batch
        mine = [i for i, (_, owner) in enumerate(places) if owner == rank]
        assert share.problem_index.tolist() == [alone.groups[i].problem_index for i in mine for _ in range(G)]
        assert share.update.tolist() == [places[i][0] for i in mine for _ in range(G)]
        for row, key in enumerate(share.sequence_id.tolist()):
            [twin] = (x.sequence_id == key).nonzero().flatten().tolist()
            length = int(x.prompt_length[twin] + x.answer_length[twin])
            assert share.input_ids[row, :length].tolist() == x.input_ids[twin, :length].tolist()
            for name in (
                "prompt_length",
                "answer_length",
                "rewards",
                "advantages",
                "contributing",
                "right",
                "truncated",
                "update",
            ):
                assert getattr(share, name)[row] == getattr(x, name)[twin]
            answer = slice(int(share.answer_length[row]))
            torch.testing.assert_close(share.sampler_logp[row, answer], x.sampler_logp[twin, answer])
            found.append(key)
    assert sorted(found) == sorted(x.sequence_id.tolist())
    # the number drawn is rounded up to the ranks: it decides the surplus and nothing else
    by_ranks = {"rollout/problems_drawn", "rollout/surplus_groups", "rollout/epoch"} if dynamic else set()
    for name in alone.metrics.keys() - by_ranks:
        assert together[0].metrics[name] == together[1].metrics[name] == alone.metrics[name]


def test_problems_that_cannot_be_shared_are_an_error(engine):
    with pytest.raises(ValueError, match=r"data\.prompts_per_rollout = 4 must be divisible"):
        collected(collector_of(engine), batch_of(problems_with("odd"), updates=3))


# -- dynamic sampling --------------------------------------------------------------------------------------------------


def test_dynamic_sampling_keeps_the_first_mixed_groups_in_draw_order(engine):
    batch = batch_of(problems_with("wrong", "odd", "right", "odd"), wanted=6)
    rollout = collected(collector_of(engine, dynamic_sampling=True), batch)
    drawn = int(rollout.metrics["rollout/problems_drawn"])
    everything = answered(engine, ProblemStream(batch.stream.problems, seed=1).at(0, drawn))
    mixed = [group for group in everything if group.mixed]
    assert 6 < len(mixed) < drawn
    assert rollout.groups == mixed[:6]
    assert rollout.metrics["rollout/surplus_groups"] == len(mixed) - 6
    assert rollout.metrics["rollout/masked_groups"] == 0
    assert batch.stream.cursor == drawn
    x = rollout.batch
    assert x.contributing.all()
    assert x.sequence_id.tolist() == [
        group.problem_index * G + number for group in rollout.groups for number in range(G)
    ]


def test_dynamic_sampling_stops_as_soon_as_there_are_enough(engine):
    problems = problems_with("odd")
    enough = [group.mixed for group in answered(engine, ProblemStream(problems, seed=1).at(0, P))]
    batch = batch_of(problems, wanted=enough.index(False) if False in enough else P)
    rollout = collected(collector_of(engine, dynamic_sampling=True), batch)
    assert rollout.metrics["rollout/problems_drawn"] == len(batch.problems) == batch.stream.cursor


@pytest.mark.parametrize("rounds", [1, 3])
def test_after_the_last_round_masked_groups_fill_up_with_a_warning(engine, rounds, caplog):
    batch = batch_of(problems_with("wrong", "wrong", "wrong", "wrong", "odd"), wanted=8)
    settings = {"dynamic_sampling": True, "max_rounds": rounds, "overlong_buffer": LENGTH}
    with caplog.at_level(logging.WARNING):
        rollout = collected(collector_of(engine, **settings), batch)
    drawn = int(rollout.metrics["rollout/problems_drawn"])
    assert drawn == batch.stream.cursor  # every problem drawn has been answered
    everything = answered(engine, ProblemStream(batch.stream.problems, seed=1).at(0, drawn))
    mixed = [group.problem_index for group in everything if group.mixed]
    filler = [group.problem_index for group in everything if not group.mixed][: 8 - len(mixed)]
    assert 0 < len(mixed) < 8
    assert [group.problem_index for group in rollout.groups] == sorted(mixed + filler)
    assert rollout.metrics["rollout/masked_groups"] == len(filler)
    x = rollout.batch
    masked = torch.isin(x.problem_index, torch.tensor(filler))
    assert x.rewards[masked].unique().numel() > 1  # shaped, yet without advantage
    assert not x.advantages[masked].any()
    assert not x.contributing[masked].any()
    assert x.contributing[~masked].all()
    assert f"{len(mixed)} of 8 groups" in caplog.text
    assert f"rollout.max_rounds = {rounds}" in caplog.text


def test_the_filter_sees_the_outcome_and_not_the_shaped_reward(engine):
    plain = collected(collector_of(engine, overlong_buffer=LENGTH), batch_of(problems_with("wrong")))
    assert plain.batch.contributing.any()  # without a filter, shaping alone gives groups an advantage
    assert plain.metrics["rollout/contributing"] > 0
    filtered = collector_of(engine, overlong_buffer=LENGTH, dynamic_sampling=True, max_rounds=2)
    rollout = collected(filtered, batch_of(problems_with("wrong")))
    assert not rollout.batch.advantages.any()
    assert rollout.metrics["rollout/masked_groups"] == P


# -- shaping and limits ------------------------------------------------------------------------------------------------


def test_overlong_punishment_reaches_rewards_and_advantages(engine):
    settings = {"overlong_buffer": 5, "overlong_penalty": 0.5}
    rollout = collected(collector_of(engine, **settings), batch_of(problems_with("odd")))
    x = rollout.batch
    right = torch.tensor([float(verdict.right) for group in rollout.groups for verdict in group.verdicts])
    punishment = torch.tensor([soft_overlong(length, LENGTH, 5, 0.5) for length in x.answer_length.tolist()])
    assert torch.equal(x.rewards, right + punishment)
    assert punishment.min() == -0.5
    assert ((punishment < 0) & (punishment > -0.5)).any()
    assert torch.equal(x.advantages, group_advantages(x.rewards.view(P, G)).flatten())
    assert rollout.metrics["rollout/reward"] == pytest.approx(x.rewards.mean().item())
    assert rollout.metrics["rollout/right"] == right.mean()


def punish(x):
    return 0.25 * x.truncated + 0.125 * x.answer_length.double() / LENGTH + 0.5 * (x.problem_index == 2)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("updates", [1, 2])
def test_a_penalty_lowers_rewards_and_moves_advantages(engine, ranks, updates):
    plain = collected(collector_of(engine), batch_of(problems_with("odd", "wrong")))
    seen = {}

    def penalty(x):
        assert not x.advantages.any()  # they are made of the rewards that the penalty leaves
        assert not x.contributing.any()
        seen.update(zip(x.sequence_id.tolist(), x.rewards.tolist(), strict=True))
        return punish(x)

    def collect(ranks):
        batch = batch_of(problems_with("odd", "wrong"), updates=updates)
        return collected(collector_of(engine, ranks=ranks), batch, penalty)

    punished = on_ranks(ranks, collect)
    x, lost = plain.batch, punish(plain.batch)
    assert seen == dict(zip(x.sequence_id.tolist(), x.rewards.tolist(), strict=True))
    rewards = x.rewards - lost.float()
    advantages = group_advantages(rewards.view(P, G)).flatten()
    assert (x.contributing & (advantages != x.advantages)).any()
    assert (~x.contributing & (advantages != 0)).any()  # wrong answers that differ by their penalty
    for rollout in punished:
        share = rollout.batch
        assert torch.equal(share.rewards, rewards[share.sequence_id])
        assert torch.equal(share.advantages, advantages[share.sequence_id])
        assert torch.equal(share.contributing, (advantages != 0).view(P, G).any(1)[share.problem_index])
        assert torch.equal(share.right, x.right[share.sequence_id])
        assert rollout.metrics["rollout/penalty"] == pytest.approx(lost.mean().item(), rel=1e-12)
        assert rollout.metrics["rollout/reward"] == pytest.approx(rewards.mean().item())
    assert sorted(key for rollout in punished for key in rollout.batch.sequence_id.tolist()) == list(range(P * G))
    assert "rollout/penalty" not in plain.metrics


def test_a_penalty_gives_groups_that_only_fill_up_no_advantage(engine):
    batch = batch_of(problems_with("wrong", "wrong", "odd"), wanted=8)
    rollout = collected(collector_of(engine, dynamic_sampling=True, max_rounds=1, advantage="batch_std"), batch, punish)
    x, mixed = rollout.batch, torch.tensor([group.mixed for group in rollout.groups])
    assert 0 < mixed.sum() < 8
    expected = torch.zeros(8, G)
    expected[mixed] = estimate_advantages("batch_std", x.rewards.view(8, G)[mixed])
    assert torch.equal(x.advantages, expected.flatten())
    assert torch.equal(x.contributing, mixed.repeat_interleave(G))


@pytest.mark.parametrize(
    ("penalty", "match"),
    [
        (lambda x: x.rewards[:-1], r"shape \(15,\) for 16 sequences"),
        (lambda x: torch.where(x.sequence_id == 5, torch.nan, 0.0), r"sequence 5 .*not finite"),
    ],
)
def test_a_penalty_must_be_one_finite_number_per_sequence(engine, penalty, match):
    with pytest.raises(ValueError, match=match):
        collected(collector_of(engine), batch_of(problems_with("odd")), penalty)


def test_truncated_sampling_warns_once_and_renormalises(engine, policy, caplog):
    collector = collector_of(engine, top_k=2, allow_truncated_sampling=True)
    with caplog.at_level(logging.WARNING):
        x = collected(collector, batch_of(problems_with("odd"))).batch
        collected(collector, batch_of(problems_with("odd"), rollout=1))
    assert [record.message for record in caplog.records if "rollout.top_k = 2" in record.message] == caplog.messages
    assert len(caplog.messages) == 1
    with torch.no_grad():
        logp = policy(x.micro_batch(torch.arange(P * G)), all_stats).logp
    reported = x.sampler_logp[x.answer_mask]
    assert (reported >= logp - 1e-5).all()
    assert (reported > logp + 0.1).any()


def test_the_whole_vocabulary_gives_no_warning(engine, caplog):
    with caplog.at_level(logging.WARNING):
        collected(collector_of(engine, allow_truncated_sampling=True), batch_of(problems_with("odd")))
    assert not caplog.messages


def test_a_prompt_that_leaves_no_room_is_an_error_with_the_numbers(engine):
    problems = [*problems_with("odd", count=3), Problem.make("w2 " * 57, "odd", "long")]
    match = rf"problem {problems[3].uid} has a prompt of 57 tokens; .*max_new_tokens = 8 .*65, more than the 64"
    with pytest.raises(ValueError, match=match):
        collected(collector_of(engine), batch_of(problems))
    problems[3] = Problem.make("w2 " * 56, "odd", "long")
    assert collected(collector_of(engine), batch_of(problems)).batch.input_ids.shape[1] <= 64


def test_answers_are_tokens_of_the_vocabulary_and_their_text(engine):
    group = answered(engine, problems_with("odd", count=1))[0]
    for completion in group.completions:
        assert all(0 <= token < VOCABULARY for token in completion.token_ids)
        spoken = [token for token in completion.token_ids if token > 1]
        assert [word for word in completion.text.split() if word != "<unk>"] == [f"w{token}" for token in spoken]


def test_no_problems_are_no_groups(engine):
    settings = {"answers": G, "max_new_tokens": 2, "temperature": 1.0, "template": TEMPLATE, "verifier": ByGold()}
    assert generator_of(engine).answer([], [], 0, **settings) == []


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_new_tokens": 0}, r"rollout\.max_new_tokens = 0"),
        ({"max_rounds": 0}, r"rollout\.max_rounds = 0"),
        ({"temperature": 0.0}, r"rollout\.temperature = 0\.0"),
        ({"temperature": -1.0}, r"rollout\.temperature = -1\.0"),
        ({"temperature": float("nan")}, r"rollout\.temperature = nan"),
        ({"max_new_tokens": 8, "overlong_buffer": 9}, r"rollout\.overlong_buffer = 9 .*rollout\.max_new_tokens = 8"),
        ({"overlong_buffer": -1}, r"rollout\.overlong_buffer = -1"),
        ({"top_p": 0.0, "allow_truncated_sampling": True}, r"rollout\.top_p = 0\.0"),
        ({"top_p": 1.01}, r"rollout\.top_p = 1\.01"),
        ({"top_k": -1, "allow_truncated_sampling": True}, r"rollout\.top_k = -1"),
        ({"top_p": 0.9}, r"rollout\.top_p = 0\.9 .*ratio is biased.*rollout\.allow_truncated_sampling: true"),
        ({"top_k": 20}, r"rollout\.top_k = 20 .*entropies are of the full vocabulary.*allow_truncated_sampling: true"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_errors(settings, key):
    with pytest.raises(ValueError, match=key):
        RolloutConfig(**settings)


def test_a_token_without_an_embedding_is_refused(engine):
    """Of a token that was added to the tokenizer alone; the prompt of a problem is its text."""
    generator = AnswerGenerator(*engine, (EOS,), seed=3, embeddings=8)
    problems = [
        Problem(uid="a", prompt="w2 w7", answer="", source="test"),
        Problem(uid="b", prompt="w3 w8", answer="", source="test"),
    ]
    settings = {"answers": 1, "max_new_tokens": 2, "temperature": 1.0, "verifier": None}
    settings["template"] = PromptTemplate(kind="base", text="{problem}")
    with pytest.raises(
        ValueError, match=r"prompt of problem b has token 8 \('w8'\), the policy's embedding has 8 rows"
    ):
        generator.answer(problems, [0, 1], 0, **settings)


def test_a_model_that_cannot_end_an_answer_is_refused(engine):
    with pytest.raises(ValueError, match=r"the tokens that end an answer are \[9, 12\], the model has 9"):
        AnswerGenerator(*engine, (9, 12), seed=3, embeddings=9)
    assert AnswerGenerator(*engine, (8, 12), seed=3, embeddings=9).eos_ids == (8, 12)


class Listening:
    """Keeps the texts that it is asked about."""

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        self.texts = [answer for answer, _ in pairs]
        return [Verdict("wrong", "not told")] * len(pairs)


@pytest.mark.parametrize(("end", "begun"), [(" <think>\n", "<think>\n"), (" w3", "")])
def test_the_verifier_sees_what_the_prompt_has_begun_of_the_answer(end, begun, engine):
    verifier = Listening()
    settings = {"answers": G, "max_new_tokens": LENGTH, "temperature": 1.0, "verifier": verifier}
    generator, template = generator_of(engine), PromptTemplate("base", "{problem}" + end)
    groups = generator.answer(problems_with("right", count=2), [0, 1], 0, template=template, **settings)
    assert verifier.texts == [completion.text for group in groups for completion in group.completions]
    decoded = [engine[1].decode(c.token_ids, skip_special_tokens=True) for group in groups for c in group.completions]
    assert verifier.texts == [begun + text for text in decoded]
