"""A policy in transformers' own format, so that any engine can serve it, and stops where the policy does."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import GenerationConfig, PreTrainedTokenizerBase

from forklight import __version__
from forklight.models.policy import Policy

_PARTS = ("model", "data")
"""Sections of a config that say what was trained."""


def save_policy(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, eos: Sequence[int], folder: Path, card: str
) -> None:
    """Writes weights (safetensors), config, generation config, tokenizer with its chat template, and a model card.

    A folder that is there is replaced when the new one is complete.

    Args:
        policy: whose weights are saved.
        tokenizer: the policy's.
        eos: all tokens that end an answer; the generation config has them, and the token for padding.
        folder: where to.
        card: text of `README.md`.
    """
    beside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
    settings = policy.model.generation_config
    policy.model.generation_config = GenerationConfig(eos_token_id=list(eos), pad_token_id=padding)  # type: ignore[no-untyped-call]
    try:
        policy.model.save_pretrained(beside)
    finally:
        policy.model.generation_config = settings
    tokenizer.save_pretrained(beside)
    (beside / "README.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def model_card(base: str, updates: int, config: dict[str, Any] | None) -> str:
    """What a policy is and how it was trained, as Markdown.

    Args:
        base: `model.policy.path`.
        updates: that it was trained for.
        config: the run's, if known; model and data are shown.
    """
    head = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        head += f"base_model: {base}\n"
    text = (
        f"{head}---\n\n# Policy after {updates} updates\n\nTrained by reinforcement learning with verifiable rewards "
        f"(forklight {__version__}) from `{base}`."
    )
    if config is None:
        return text + "\n"
    init = config.get("model", {}).get("init_args", {})
    if stop := init.get("rollout", {}).get("stop"):
        text += f" Answers were also ended by {stop}: give these to the engine as stop strings."
    shown = {part: config[part] for part in _PARTS if part in config}
    return f"{text}\n\n```yaml\n{yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)}```\n"
