"""`forklight compare`: which answers are compared, and what is refused."""

import json

import pytest
import torch

from forklight.cli import main
from forklight.metrics import paired_difference
from forklight.types import Problem


def write(path, rights, *, step=0, name="aime24", gold="5", mode="w", first=0):
    """Answers to problems first, first + 1, ..: a row of 0 and 1 each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        for number, row in enumerate(rights, start=first):
            uid = Problem.make(str(number), gold, name).uid
            for answer, right in enumerate(row):
                line = {"step": step, "set": name, "uid": uid, "answer": answer, "gold": gold}
                file.write(json.dumps(line | {"outcome": "right" if right else "wrong"}) + "\n")
    return path


def compared(capsys, *arguments):
    main(["compare", *map(str, arguments), "--json_line", "true"])
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["compare", *map(str, arguments)])
    assert stop.value.code == 2
    return capsys.readouterr().err.removeprefix("forklight: error: ")


A = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
B = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 0]]


def test_two_runs(tmp_path, capsys):
    write(tmp_path / "a" / "samples.jsonl", A, step=7)
    write(tmp_path / "b" / "validate-0" / "samples.jsonl", B, step=9)
    found = compared(capsys, tmp_path / "a", tmp_path / "b" / "validate-0")["aime24"]
    by_uid = sorted(range(4), key=lambda number: Problem.make(str(number), "5", "aime24").uid)
    shares = (torch.tensor([side[number] for number in by_uid], dtype=torch.float64).mean(1) for side in (A, B))
    expected = paired_difference(*shares)
    assert found["difference"] == expected._asdict()
    assert found["scores"] == [7 / 16, 9 / 16]
    assert (found["problems"], found["left_out"], found["steps"], found["answers"]) == (4, 0, [7, 9], [4, 4])


def test_two_checkpoints_of_one_run(tmp_path, capsys):
    path = write(tmp_path / "samples.jsonl", A, step=0)
    write(path, B, step=100, mode="a")
    write(path, A, step=200, mode="a")
    assert compared(capsys, path, path, "--step_a", 0)["aime24"]["difference"]["difference"] == 0
    found = compared(capsys, path, path, "--step_a", 0, "--step_b", 100)["aime24"]
    assert found["difference"]["difference"] == pytest.approx(2 / 16)


def test_problems_that_only_one_has_are_left_out_and_counted(tmp_path, capsys):
    a, b = write(tmp_path / "a.jsonl", A), write(tmp_path / "b.jsonl", [row[:2] for row in B[:3]])
    found = compared(capsys, a, b)["aime24"]
    assert (found["problems"], found["left_out"], found["answers"]) == (3, 1, [4, 2])
    assert found["scores"] == pytest.approx([3 / 12, 4 / 6])


def test_sets(tmp_path, capsys):
    a = write(tmp_path / "a.jsonl", A)
    write(a, A, name="math500", mode="a")
    b = write(tmp_path / "b.jsonl", B, name="math500")
    write(b, B, name="gsm8k", mode="a")
    assert list(compared(capsys, a, b)) == ["math500"]
    assert "no set aime24 that both have; A and B have aime24, math500 and math500, gsm8k" in refused(
        capsys, a, b, "--name", "aime24"
    )


def test_the_table(tmp_path, capsys):
    main(["compare", str(write(tmp_path / "a.jsonl", A, step=3)), str(write(tmp_path / "b.jsonl", B, step=5))])
    shown = capsys.readouterr().out
    for part in ("aime24", "43.8 %", "56.2 %", "+12.5", "95% interval", "A 4 answers after 3 updates"):
        assert part in shown


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    a = write(tmp_path / "a" / "samples.jsonl", A)
    assert "holds no samples.jsonl or predictions.jsonl" in refused(capsys, a, tmp_path / "none")
    write(tmp_path / "b" / "test-1" / "predictions.jsonl", B)
    assert f"there are some in {tmp_path / 'b' / 'test-1'}" in refused(capsys, a, tmp_path / "b")
    assert "no evaluation after 3 updates; there are [0]" in refused(capsys, a, a, "--step_b", 3)
    other = write(tmp_path / "other.jsonl", A)
    other.write_text(other.read_text().replace('"gold": "5"', '"gold": "6"'))
    assert "4 golds differ" in refused(capsys, a, other)
    apart = write(tmp_path / "apart.jsonl", A, first=10)
    assert "A has 4 problems, B 4, and none is the same" in refused(capsys, a, apart)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"step": 0}\n')
    assert "broken.jsonl:1: no line of an evaluation" in refused(capsys, a, broken)


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    assert "bootstrap" in capsys.readouterr().out
