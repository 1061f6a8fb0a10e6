from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from tokens import build_tokenizer
from toy import LengthParity

from forklight.data.datamodule import MathDataModule
from forklight.data.lengths import PromptLimit
from forklight.data.problems import ProblemFile
from forklight.data.prompts import PromptTemplate
from forklight.data.sets import EvalSet
from forklight.data.stream import NOMINAL_LENGTH, PositionedLoader, ProblemStream, PromptBatch
from forklight.types import Problem

PROBLEMS = [Problem.make(f"problem {i}", str(i), "test") for i in range(7)]


class Listed:
    """A source that counts how often it is read."""

    def __init__(self, problems=PROBLEMS):
        self.problems, self.reads = problems, 0

    def read(self):
        self.reads += 1
        return list(self.problems)


def uids(problems):
    return [problem.uid for problem in problems]


# -- the stream --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(0, 2**32), st.integers(0, 5))
def test_every_pass_over_the_data_is_a_permutation(count, seed, epoch):
    stream = ProblemStream(PROBLEMS[:count], seed)
    count = len(stream.problems)
    assert sorted(uids(stream.at(epoch * count, count))) == sorted(uids(stream.problems))


def test_order_changes_with_pass_and_seed():
    problems = [Problem.make(str(i), "", "test") for i in range(50)]
    orders = [uids(ProblemStream(problems, seed).at(epoch * 50, 50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in [*orders, uids(problems)]}) == 5


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), max_size=8), st.integers(0, 99))
def test_draws_are_consecutive_and_the_cursor_is_the_whole_state(counts, seed):
    stream, drawn = ProblemStream(PROBLEMS, seed), []
    for count in counts:
        resumed = ProblemStream(PROBLEMS, seed)
        resumed.cursor = stream.cursor
        part = stream.draw(count)
        assert resumed.draw(count) == part
        drawn += part
    assert stream.cursor == sum(counts)
    assert stream.epoch == sum(counts) / len(PROBLEMS)
    assert drawn == ProblemStream(PROBLEMS, seed).at(0, sum(counts))


def test_looking_back_moves_nothing():
    stream = ProblemStream(PROBLEMS, 3)
    first = stream.draw(5)
    later = stream.at(30, 4)
    assert stream.at(0, 5) == first
    assert stream.at(30, 4) == later
    assert stream.cursor == 5


# -- loader and stamps -------------------------------------------------------------------------------------------------


def test_loader_starts_where_its_owner_says_when_iteration_begins():
    position = 0
    loader = PositionedLoader(6, start=lambda: position, batch=lambda number: number * 10)
    position = 4
    assert list(loader) == [40, 50]
    position = 6
    assert list(loader) == []
    assert len(loader) == 6
    assert loader.state_dict() == {}


@pytest.mark.parametrize(("updates", "micro_batches"), [(1, 1), (1, 3), (2, 1), (3, 4)])
def test_stamps_of_the_visits_of_a_rollout(updates, micro_batches):
    shared = {
        "answers": 2,
        "stream": ProblemStream(PROBLEMS, 0),
        "template": PromptTemplate(),
        "verifier": LengthParity(),
    }
    shared |= {"updates": updates, "micro_batches": micro_batches}
    batches = [
        PromptBatch(PROBLEMS, rollout=5, micro_batch=micro_batch, **shared)
        for micro_batch in range(updates * micro_batches)
    ]
    assert [batch.update for batch in batches] == [update for update in range(updates) for _ in range(micro_batches)]
    assert [batch.starts_update for batch in batches] == ([True] + [False] * (micro_batches - 1)) * updates
    assert [batch.ends_update for batch in batches] == ([False] * (micro_batches - 1) + [True]) * updates
    assert [batch.ends_rollout for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert batches[0].to("cpu") is batches[0]


# -- the data module ---------------------------------------------------------------------------------------------------


def module_of(micro_batches=1, **settings):
    data = MathDataModule(**{"train": [Listed()], "verifier": LengthParity(), "prompts_per_rollout": 3, **settings})
    data.trainer = Trainer(
        accelerator="cpu",
        accumulate_grad_batches=micro_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    return data


def stamp(batch):
    return batch.rollout, batch.micro_batch, batch.updates, batch.micro_batches, batch.answers, uids(batch.problems)


def serve(data, count, more=0):
    """The next batches; the first micro_batch of each rollout draws more problems, as dynamic sampling does."""
    stamps = []
    for batch in islice(data.train_dataloader(), count):
        stamps.append(stamp(batch))
        if batch.micro_batch == 0:
            batch.stream.draw(more)
    return stamps


def test_every_batch_comes_once_per_visit():
    data = module_of(2, updates_per_rollout=3, answers_per_prompt=5)
    stamps = serve(data, 12)
    order = uids(data.stream.at(0, 6))
    assert stamps == [(r, v, 3, 2, 5, order[3 * r : 3 * r + 3]) for r in range(2) for v in range(6)]
    assert len(data.train_dataloader()) == NOMINAL_LENGTH
    assert data.micro_batches_per_rollout == 6


def test_problems_drawn_in_between_are_not_served_again():
    data = module_of()
    stamps = serve(data, 3, more=4)
    order = uids(data.stream.at(0, 21))
    assert [stamp[-1] for stamp in stamps] == [order[0:3], order[7:10], order[14:17]]


@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("done", range(10))
def test_a_resumed_module_goes_on_where_the_saved_one_was(done, more):
    choices = {"micro_batches": 2, "updates_per_rollout": 2}
    whole = serve(module_of(**choices), 14, more)
    saved, resumed = module_of(**choices), module_of(**choices)
    assert serve(saved, done, more) == whole[:done]
    state = saved.state_dict()
    assert all(isinstance(value, int | str) for value in state.values())
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert serve(resumed, 14 - done, more) == whole[done:]


def test_a_module_that_has_served_can_be_set_back():
    data = module_of()
    start = data.state_dict()
    first = serve(data, 4)
    data.load_state_dict(start)
    assert serve(data, 4) == first


def test_the_order_of_other_problems_is_not_gone_on_with():
    saved = module_of()
    serve(saved, 2)
    state = saved.state_dict()
    more = [*PROBLEMS, Problem.make("another", "7", "test")]
    changed = [*PROBLEMS[:-1], Problem.make("problem 6", "7", "test")]
    for problems in (more, PROBLEMS[::-1], changed):
        now = module_of(train=[Listed(problems)])
        now.load_state_dict(state)  # `validate` does so too, and never reads the training problems
        message = rf"data\.train: .* trained on 7 problems \(sha256 \w+\), the sources hold {len(problems)} problems"
        with pytest.raises(ValueError, match=message):
            now.stream  # noqa: B018  reading it is the test
        with pytest.raises(ValueError, match="Restore the files"):
            serve(now, 1)
        read = module_of(train=[Listed(problems)])
        read.read()
        with pytest.raises(ValueError, match=message):
            read.load_state_dict(state)
    same = module_of(train=[Listed(PROBLEMS[:3]), Listed(PROBLEMS[2:])])
    same.load_state_dict(state)
    assert same.read() == 7


def test_an_unread_module_keeps_what_it_was_trained_on():
    saved = module_of()
    serve(saved, 2)
    resumed = module_of()
    resumed.load_state_dict(saved.state_dict())
    assert resumed.state_dict() == saved.state_dict()


def test_micro_batches_may_change_at_a_rollout_boundary_only():
    saved = module_of(2)
    serve(saved, 4)
    other = module_of(3)
    other.load_state_dict(saved.state_dict())
    assert [stamp[:2] for stamp in serve(other, 4)] == [(2, 0), (2, 1), (2, 2), (3, 0)]
    serve(saved, 1)
    with pytest.raises(ValueError, match=r"trainer\.accumulate_grad_batches = 3, .* with 2 micro-batches"):
        module_of(3).load_state_dict(saved.state_dict())


def test_duplicates_are_dropped_and_no_problems_are_an_error():
    data = MathDataModule([Listed(PROBLEMS[:4]), Listed(PROBLEMS[2:])], verifier=LengthParity())
    assert sorted(uids(data.stream.problems)) == sorted(uids(PROBLEMS))
    with pytest.raises(ValueError, match=r"data\.train: no training problems"):
        MathDataModule(verifier=LengthParity()).stream  # noqa: B018  reading it is the test


def test_order_follows_the_seed_of_the_run(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    first = serve(module_of(), 5)
    assert serve(module_of(), 5) == first
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    assert serve(module_of(), 5) != first


def test_a_path_is_a_problem_file(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    for train in (str(path), [str(path)], [ProblemFile(str(path))]):
        assert MathDataModule(train, verifier=LengthParity()).read() == 1


# -- prompts that are too long -----------------------------------------------------------------------------------------


def limit_of(positions, new=2):
    return PromptLimit(build_tokenizer(start=""), positions, new)


LONG = [Problem.make("1" * length, "1", "test") for length in (3, 9, 5, 7)]
PLAIN = PromptTemplate("base", "{problem}")


def limited(positions, **settings):
    data = module_of(train=[Listed(LONG)], template=PLAIN, **settings)
    data.for_policy(limit_of(positions))
    return data


def test_prompts_that_are_too_long_are_refused_when_they_are_read():
    assert limited(11).read() == 4
    assert limited(None).read() == 4
    message = r"data\.train: 2 of 4 prompts .* reads 8 tokens, max_new_tokens = 2 leaves 6 .* has 9 .*overlong: drop"
    with pytest.raises(ValueError, match=message):
        limited(8).read()


def test_prompts_that_are_too_long_are_dropped_and_counted(caplog):
    data = limited(8, overlong="drop")
    assert data.read() == 2
    assert data.stream.problems == [LONG[0], LONG[2]]
    assert "data.train: 2 of 4 prompts are too long" in caplog.text
    assert "they are dropped" in caplog.text
    with pytest.raises(ValueError, match=r"4 of 4 prompts .*none is left"):
        limited(4, overlong="drop").read()


def test_evaluation_sets_are_not_shortened():
    sets = {"a": EvalSet(Listed(LONG), answers=2)}
    with pytest.raises(ValueError, match=r"data\.val\.a: 1 of 4 .* an evaluation set is never shortened"):
        limited(10, overlong="drop", val=sets).read()
    own = {"a": EvalSet(Listed(LONG), answers=2, max_new_tokens=1)}
    assert limited(10, overlong="drop", val=own).read() == 3
    data = limited(10, val=own, test=sets)
    with pytest.raises(ValueError, match=r"data\.test\.a: 1 of 4"):
        data.setup("test")


def test_problems_read_before_the_policy_is_known_are_checked_then():
    data = module_of(train=[Listed(LONG)], template=PLAIN, overlong="drop")
    assert serve(data, 1)
    assert data.read() == 4
    data.for_policy(limit_of(8))
    assert data.read() == 2
    assert data.stream.cursor == 3


def test_overlong_is_a_choice():
    with pytest.raises(ValueError, match=r"data\.overlong = 'cut' must be one of error, drop"):
        MathDataModule([Listed()], verifier=LengthParity(), overlong="cut")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompts_per_rollout", 0),
        ("updates_per_rollout", 0),
        ("eval_every_rollouts", 0),
        ("eval_batch_size", 0),
        ("answers_per_prompt", 1),
    ],
)
def test_sizes_without_a_meaning_are_errors_with_the_key(key, value):
    with pytest.raises(ValueError, match=rf"data\.{key} = {value}"):
        MathDataModule([Listed()], verifier=LengthParity(), **{key: value})


def test_evaluation_batches_hold_every_problem_with_its_protocol():
    own = PromptTemplate("base", "{problem}!")
    sets = {
        "a": EvalSet(Listed(), answers=2),
        "b": EvalSet(Listed(PROBLEMS[:2]), template=own, verifier=LengthParity()),
    }
    data = module_of(val=sets, eval_batch_size=3)
    batches = list(data.val_dataloader())
    assert [(batch.name, len(batch.problems)) for batch in batches] == [("a", 3), ("a", 3), ("a", 1), ("b", 2)]
    assert uids(problem for batch in batches[:3] for problem in batch.problems) == uids(PROBLEMS)
    assert batches[0].spec is sets["a"]
    assert (batches[0].template, batches[3].template) == (data.template, own)
    assert (batches[0].verifier, batches[3].verifier) == (data.verifier, sets["b"].verifier)
    assert [batch.name for batch in data.test_dataloader()] == [batch.name for batch in batches]
    assert len(list(data.val_dataloader())) == len(batches)
