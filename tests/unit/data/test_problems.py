import gzip
import json
import logging
import subprocess
import sys

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forklight.data.problems import GSM8K_ANSWER, ProblemFile, read_problems
from forklight.types import Problem

ROWS = [
    {"id": "a-1", "problem": "What is $\\frac{1}{2} + 1$?", "answer": "\\frac{3}{2}", "source": "made up"},
    {"id": "a-2", "problem": "Wie groß ist 2 + 2?", "answer": 4, "source": "made up"},
    {"id": "a-3", "problem": "Half of 5?\n", "answer": 2.5, "source": "made up"},
]


@pytest.fixture
def write(tmp_path):
    """Writes rows to a file whose suffix says how; text and bytes are written as they are."""

    def write_rows(rows, name="set.jsonl"):
        path = tmp_path / name
        if isinstance(rows, str):
            path.write_text(rows)
        elif isinstance(rows, bytes):
            path.write_bytes(rows)
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            texts = [{key: str(value) for key, value in row.items()} for row in rows]
            datasets.Dataset.from_list(texts).to_parquet(str(path))
        return path

    return write_rows


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_all_formats_read_the_same(write, suffix):
    problems = read_problems(write(ROWS, f"algebra.{suffix}"))
    assert problems == [
        Problem.make("What is $\\frac{1}{2} + 1$?", "\\frac{3}{2}", "algebra"),
        Problem.make("Wie groß ist 2 + 2?", "4", "algebra"),
        Problem.make("Half of 5?", "2.5", "algebra"),
    ]


def test_the_name_and_not_the_place_of_a_file_makes_the_uid(write):
    here = read_problems(write(ROWS, "here.jsonl"), name="algebra")
    there = read_problems(write(ROWS, "there.json"), name="algebra")
    assert here == there
    assert here[0].source == "algebra"
    assert here[0].uid != read_problems(write(ROWS, "here.jsonl"))[0].uid


def test_other_fields_and_answer_pattern(write):
    rows = [{"question": "6 * 12?", "solution": "6 * 12 = <<6*12=72>>72\n#### 72"}]
    path = write(rows)
    problem = read_problems(path, prompt_field="question", answer_field="solution", answer_pattern=GSM8K_ANSWER)[0]
    assert problem == Problem.make("6 * 12?", "72", "set")


def test_the_last_match_of_the_pattern_counts(write):
    path = write([{"problem": "p", "answer": "#### 1\n#### 2 "}])
    assert read_problems(path, answer_pattern=GSM8K_ANSWER)[0].answer == "2"


def test_blank_lines_and_byte_order_mark_are_skipped(write):
    text = "\ufeff" + json.dumps(ROWS[0]) + "\r\n\n   \n" + json.dumps(ROWS[1])
    assert len(read_problems(write(text.encode()))) == 2


def test_line_separators_inside_a_problem_do_not_end_the_line(write):
    path = write(json.dumps({"problem": "one\u2028two\x85three", "answer": "1"}, ensure_ascii=False).encode())
    assert read_problems(path)[0].prompt == "one\u2028two\x85three"


def test_limit_counts_different_problems(write):
    path = write([ROWS[0], ROWS[0], ROWS[1], ROWS[2]])
    assert [problem.answer for problem in read_problems(path, limit=2)] == ["\\frac{3}{2}", "4"]
    assert len(read_problems(path, limit=99)) == 3


def test_repeats_are_dropped_with_a_count(write, caplog):
    repeated = [*ROWS, ROWS[0], ROWS[1] | {"answer": 5}, ROWS[1] | {"problem": " Wie groß ist 2 + 2? "}]
    with caplog.at_level(logging.WARNING):
        problems = read_problems(write(repeated))
    assert [problem.answer for problem in problems] == ["\\frac{3}{2}", "4", "2.5"]
    assert "dropped 3 problems that repeat an earlier one, 1 of them with another answer; 3 are left" in caplog.text


def test_no_warning_without_repeats(write, caplog):
    read_problems(write(ROWS))
    assert not caplog.records


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
            st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.just("x")),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda pair: pair[0].strip(),
    )
)
def test_any_text_survives_jsonl(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("any") / "set.jsonl"
    path.write_text("".join(json.dumps({"problem": text, "answer": answer}) + "\n" for text, answer in pairs))
    assert read_problems(path) == [Problem.make(text.strip(), str(answer), "set") for text, answer in pairs]


# Errors name the place


GOOD = json.dumps(ROWS[0]) + "\n"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param('{"problem": "p", "answer"', "not valid JSON: .*column", id="cut off"),
        pytest.param(b'{"problem": "\xff", "answer": "1"}', "not valid JSON: .*utf-8", id="not utf-8"),
        pytest.param('["p", "1"]', "must be an object with named fields, got list", id="a list"),
        pytest.param(
            '{"text": {"en": "p"}, "answer": "1"}', "no field `problem`.*fields here: `text.en`, `answer`", id="prompt"
        ),
        pytest.param('{"problem": "p", "gold": "1"}', "no field `answer`.*fields here: `problem`, `gold`", id="answer"),
        pytest.param("{}", "no field `problem`.*fields here: none", id="no fields"),
        pytest.param('{"problem": " \\n", "answer": "1"}', "`problem` is empty", id="blank prompt"),
        pytest.param('{"problem": "p", "answer": ""}', "`answer` is empty", id="empty answer"),
        pytest.param(
            '{"problem": 5, "answer": "1"}',
            "`problem` must be text or a list of messages, got int",
            id="prompt is a number",
        ),
        pytest.param('{"problem": [{}], "answer": "1"}', "message 1 of `problem` needs a `role`", id="no role"),
        pytest.param(
            '{"problem": [], "answer": "1"}', "the last message of `problem` must be the user's", id="no message"
        ),
        pytest.param(
            '{"problem": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "1"}], "answer": "1"}',
            "the last message of `problem` must be the user's",
            id="nothing left to answer",
        ),
        pytest.param(
            '{"problem": [{"role": "user", "content": [{"type": "image", "url": "x"}]}], "answer": "1"}',
            "the content of message 1 of `problem` must be text, got list",
            id="an image",
        ),
        pytest.param(
            '{"problem": "p", "answer": null}',
            "`answer` must be text, a list of texts or a number, got NoneType",
            id="null",
        ),
        pytest.param(
            '{"problem": "p", "answer": true}',
            "`answer` must be text, a list of texts or a number, got bool",
            id="bool",
        ),
        pytest.param('{"problem": "p", "answer": NaN}', "`answer` is nan", id="nan"),
        pytest.param('{"problem": "p\\ud800", "answer": "1"}', "`problem` holds half a character", id="lone surrogate"),
    ],
)
def test_errors_name_file_and_line(write, bad, message):
    path = write(GOOD.encode() + b"\n" + (bad if isinstance(bad, bytes) else bad.encode()) + b"\n")
    with pytest.raises(ValueError, match=f"set.jsonl:3: {message}"):
        read_problems(path)


def test_errors_name_the_item_of_json_and_the_row_of_parquet(write):
    rows = [ROWS[0], ROWS[1] | {"problem": ""}]
    with pytest.raises(ValueError, match=r"set\.json: item 2: `problem` is empty"):
        read_problems(write(rows, "set.json"))
    with pytest.raises(ValueError, match=r"set\.parquet: row 2: `problem` is empty"):
        read_problems(write(rows, "set.parquet"))


def test_json_must_hold_a_list(write):
    with pytest.raises(ValueError, match=r"must hold a list of objects, got dict.*\.jsonl"):
        read_problems(write(json.dumps(ROWS[0]), "set.json"))


def test_pattern_without_match_shows_the_end_of_the_answer(write):
    with pytest.raises(ValueError, match=r"set.jsonl:1: answer_pattern .* matches nothing in `answer`: '.*frac"):
        read_problems(write(ROWS), answer_pattern=GSM8K_ANSWER)


@pytest.mark.parametrize("pattern", ["####.*", "(a)(b)"])
def test_pattern_needs_one_group(write, pattern):
    with pytest.raises(ValueError, match="exactly one group"):
        read_problems(write(ROWS), answer_pattern=pattern)


@pytest.mark.parametrize(("name", "text"), [("set.jsonl", ""), ("set.jsonl", "\n\n"), ("set.json", "[]")])
def test_empty_sets_are_refused(write, name, text):
    with pytest.raises(ValueError, match="holds no problems"):
        read_problems(write(text, name))


def test_limit_must_be_positive(write):
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        read_problems(write(ROWS), limit=0)


# Files and the Hub


@pytest.mark.parametrize("path", ["missing.jsonl", "data/train.parquet", "./openai/gsm8k", "a/b/c"])
def test_a_missing_file_is_not_looked_up_on_the_hub(path):
    with pytest.raises(FileNotFoundError, match=r"data: there is no file"):
        read_problems(path, split="train")


def test_other_files_and_folders_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match=r"set.txt is not a \.jsonl, \.json, \.csv, \.tsv, \.parquet file"):
        read_problems(write("problem,answer\n", "set.txt"))
    with pytest.raises(ValueError, match=r"is not a folder with \.jsonl.* files, nor a data set saved"):
        read_problems(tmp_path)


@pytest.mark.parametrize("option", ["split", "subset", "revision"])
def test_hub_options_are_refused_for_files(write, option):
    with pytest.raises(ValueError, match="are for Hub datasets"):
        read_problems(write(ROWS), **{option: "main"})


def test_a_hub_dataset_needs_a_split():
    with pytest.raises(ValueError, match=r"data: name the `split` of the Hub dataset openai/gsm8k"):
        read_problems("openai/gsm8k")


def test_a_hub_dataset_is_read_as_asked(monkeypatch):
    asked = []

    def load_dataset(*args, **options):  # the Hub itself is out of reach of the tests
        asked.append((args, options))
        return datasets.Dataset.from_list(
            [{"question": "1 + 1?", "answer": "So\n#### 2"}, {"question": "?", "answer": "?"}]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    file = ProblemFile(
        "openai/gsm8k",
        prompt_field="question",
        answer_pattern=GSM8K_ANSWER,
        split="test",
        subset="main",
        revision="abc",
        limit=1,
    )
    assert file.read() == [Problem.make("1 + 1?", "2", "openai/gsm8k")]
    assert asked == [(("openai/gsm8k", "main"), {"split": "test", "revision": "abc"})]


def test_an_unreachable_hub_is_explained(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"data: no-such-owner/set is no file here, and the Hugging Face Hub"):
        read_problems("no-such-owner/set", split="train")


def test_parquet_leaves_no_copy_in_the_cache(write, tmp_path):
    path = write(ROWS, "set.parquet")
    code = f"from forklight.data.problems import read_problems; print(len(read_problems({str(path)!r}, limit=1)))"
    cache = tmp_path / "cache"
    output = subprocess.run(
        [sys.executable, "-c", code], env={"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert (output.returncode, output.stdout.strip()) == (0, "1"), output.stderr
    assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) == 0


# Layouts of others


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 3?"}]
VERL = {"data_source": "x", "prompt": CHAT[1:], "reward_model": {"style": "rule", "ground_truth": "5"}}


def test_rows_of_verl_are_read_without_a_key(write, caplog):
    (problem,) = read_problems(write([VERL]))
    assert problem == Problem.make("What is 2 + 3?", "5", "set")
    assert "`prompt` is read in its place (prompt_field)" in caplog.text
    assert "`reward_model.ground_truth` is read in its place (answer_field)" in caplog.text
    assert problem.fields == VERL | {"reward_model.ground_truth": "5"}


def test_a_chat_keeps_its_turns(write):
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 3?"}]}]
    path = write([{"prompt": CHAT, "solution": "5"}, {"prompt": parts, "solution": "5"}])
    chat, single = read_problems(path)
    assert chat.chat == (("system", "Be brief."), ("user", "What is 2 + 3?"))
    assert chat.prompt == "system: Be brief.\n\nuser: What is 2 + 3?"
    assert (single.prompt, single.chat) == ("What is 2 + 3?", ())
    assert len({chat, single}) == 2


def test_fields_by_their_path_and_by_a_name_with_dots(write):
    path = write([{"a": {"b": {"c": "p"}}, "x.y": 7}])
    assert read_problems(path, prompt_field="a.b.c", answer_field="x.y")[0] == Problem.make("p", "7", "set")
    with pytest.raises(ValueError, match=r"no field `a\.b\.d`.*fields here: `a\.b\.c`, `x\.y`"):
        read_problems(path, prompt_field="a.b.d", answer_field="x.y")


def test_fields_are_guessed_when_there_is_one_choice(write, caplog):
    assert read_problems(write([{"question": "p", "final_answer": 3}]))[0].answer == "3"
    assert "there is no field `problem`; `question` is read in its place" in caplog.text
    caplog.clear()
    assert read_problems(write([{"problem": "p", "solution": "4", "answer": 3, "prompt": "q"}]))[0].answer == "3"
    assert not caplog.records
    with pytest.raises(ValueError, match="set answer_field: it may be `final_answer` or `solution`"):
        read_problems(write([{"problem": "p", "solution": "4", "final_answer": 3}]))
    with pytest.raises(ValueError, match="no field `problem`"):
        read_problems(write([{"question": "p", "answer": 3}]), prompt_field="problem")


def test_packed_files(write, tmp_path):
    for name in ("set.jsonl", "set.json"):
        path = write(ROWS, name)
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert read_problems(packed) == read_problems(path)
        assert ProblemFile(str(packed)).label == "set"
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"set\.json\.gz: not a whole gzip file"):
        read_problems(packed)


def test_tables(write):
    table = 'id,problem,answer\r\n1,"What is 2,\nor ""two""?",2\r\n\r\n2,Ça?,"80,10"\r\n'
    expected = [Problem.make('What is 2,\nor "two"?', "2", "set"), Problem.make("Ça?", "80,10", "set")]
    assert read_problems(write("\ufeff" + table, "set.csv")) == expected
    assert read_problems(write("answer\tproblem\n7\tWhat, 7?\n", "set.tsv"))[0].answer == "7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("problem,answer\np\n", "set.csv:2: 1 values for the 2 columns"),
        ("problem,answer\np,1,2\n", "set.csv:2: 3 values for the 2 columns"),
        ("problem,problem\np,1\n", "set.csv:1: every column needs a name of its own"),
        ('problem,answer\n"p" q,1\n', "set.csv:2: not valid CSV"),
        (b"problem,answer\n\xff,1\n", "set.csv:2: not valid CSV: .*utf-8"),
        ("problem,answer\n", "holds no problems"),
    ],
)
def test_bad_tables_name_the_line(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_problems(write(text, "set.csv"))


def test_a_folder_and_a_pattern_are_read_by_name(write, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, row in reversed(list(enumerate(ROWS))):
        write([row], f"parts/part-{number}.jsonl")
    (folder / "README.md").write_text("not a problem")
    problems = read_problems(folder)
    assert [problem.answer for problem in problems] == ["\\frac{3}{2}", "4", "2.5"]
    assert problems[0].source == "parts"
    some = read_problems(f"{folder}/part-[01].jsonl", name="parts")
    assert some == problems[:2]
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_problems(f"{folder}/train-*.jsonl")
    with pytest.raises(ValueError, match=r"README.md, which is not a \.jsonl"):
        read_problems(f"{folder}/*")


def test_data_sets_saved_to_disk(write, tmp_path):
    rows = datasets.Dataset.from_list([{"question": "1 + 1?", "answer": "2"}])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "two"))
    assert read_problems(tmp_path / "one") == [Problem.make("1 + 1?", "2", "one")]
    assert read_problems(tmp_path / "two", split="test") == [Problem.make("1 + 1?", "2", "two")]
    with pytest.raises(ValueError, match=r"name the `split` of .*two, one of train, test"):
        read_problems(tmp_path / "two")
    with pytest.raises(ValueError, match="are for Hub datasets"):
        read_problems(tmp_path / "one", split="train")


def test_a_pattern_that_is_none_is_refused(write):
    with pytest.raises(ValueError, match=r"answer_pattern '\(' is no regular expression"):
        read_problems(write(ROWS), answer_pattern="(")


# ProblemFile


def test_problem_file_reads_what_it_describes(write):
    path = write(ROWS, "algebra.jsonl")
    assert ProblemFile(str(path), limit=2).read() == read_problems(path, limit=2)
    assert ProblemFile(str(path), name="x").read()[0].source == "x"


@pytest.mark.parametrize(
    ("file", "label"),
    [
        (ProblemFile("some/folder/aime24.jsonl"), "aime24"),
        (ProblemFile("openai/gsm8k", split="test"), "openai/gsm8k"),
        (ProblemFile("owner/set-v1.5", split="test"), "owner/set-v1.5"),
        (ProblemFile("x.parquet", name="minerva"), "minerva"),
    ],
)
def test_label(file, label):
    assert file.label == label


def test_an_answer_pattern_that_is_none_is_one_line(write):
    with pytest.raises(ValueError, match=r"answer_pattern '\(' is no regular expression: ") as error:
        read_problems(write(ROWS), answer_pattern="(")
    assert "\n" not in str(error.value)


def test_a_problem_keeps_its_row_with_the_gold_in_place_of_the_answer(write):
    rows = [{"problem": "1 + 1?", "answer": "So it is\n#### 2", "level": 3, "tags": ["sum"]}]
    (problem,) = read_problems(write(rows), answer_pattern=GSM8K_ANSWER)
    assert problem.fields == {"problem": "1 + 1?", "answer": "2", "level": 3, "tags": ["sum"]}
