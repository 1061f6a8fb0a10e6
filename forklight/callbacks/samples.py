"""Answers as text with their forking tokens marked."""

from transformers import PreTrainedTokenizerBase

from forklight.training.state import RolloutState


def marked_answers(state: RolloutState, tokenizer: PreTrainedTokenizerBase, count: int) -> str:
    """The first answers of some problems in Markdown, forking tokens in bold; groups that contribute come first.

    Args:
        state: the rollout, with the tokens selected.
        tokenizer: the policy's.
        count: number of answers, each to another problem if there are enough.
    """
    x, fork_mask = state.batch, state.tokens.fork_mask
    groups = x.problem_index.tolist()
    first_rows = [row for row in range(len(groups)) if row == 0 or groups[row] != groups[row - 1]]
    parts = []
    for row in sorted(first_rows, key=lambda row: not x.contributing[row])[:count]:
        start, length = int(x.prompt_length[row]), int(x.answer_length[row])
        ids = x.input_ids[row].tolist()
        answer = [
            f"<strong>{_escape(text)}</strong>" if fork else _escape(text)
            for text, fork in zip(
                _texts(tokenizer, ids[start : start + length]), fork_mask[row, :length].tolist(), strict=True
            )
        ]
        prompt = _escape(str(tokenizer.decode(ids[:start])))
        head = f"advantage {float(x.advantages[row]):+.2f}, reward {float(x.rewards[row]):.2f}"
        parts.append(f"{head}\n\n<em>{prompt}</em> {''.join(answer)}")
    return "\n\n---\n\n".join(parts)


def _texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    return [str(tokenizer.decode([token])) for token in ids]


def _escape(text: str) -> str:
    """Escapes Markdown and HTML: all characters but letters, digits and blanks become entities."""
    return "".join(c if c.isalnum() or c == " " else "<br>" if c == "\n" else f"&#{ord(c)};" for c in text)
