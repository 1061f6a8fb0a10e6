"""`forklight export RUN`: the policy of a checkpoint in transformers' format."""

from pathlib import Path
from typing import Any

import yaml


def export(run: str, checkpoint: str = "last", out: str | None = None) -> None:
    """Writes the policy of a checkpoint in transformers' format; the run may have been interrupted.

    Args:
        run: Run folder.
        checkpoint: `last`, `best`, or a file.
        out: Folder to write, which must not exist or be empty; `RUN/policy-<updates>` if not given.

    Raises:
        ValueError: There is no run, no such checkpoint, or the folder is not empty.
    """
    from forklight.run_folder import RunFolder

    folder = RunFolder(Path(run))
    configs = sorted(folder.root.glob("config-*.yaml"), key=lambda path: int(path.stem.removeprefix("config-")))
    if not configs:
        raise ValueError(f"{run} holds no run: there is no config-0.yaml")
    path = folder.find(checkpoint, required=True, option="--checkpoint")
    assert path is not None
    if out is not None and Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise ValueError(f"--out {out} is not empty")
    print(f"policy saved to {_export(yaml.safe_load(configs[-1].read_text()), path, folder.root, out)}")


def _export(config: dict[str, Any], path: Path, root: Path, out: str | None) -> Path:
    """Loads and writes; returns where."""
    from dataclasses import replace

    from forklight.models.checkpoints import load_weights, policy_weights, updates_of
    from forklight.models.export import model_card, save_policy
    from forklight.models.loading import PolicyConfig, eos_ids, load_tokenizer
    from forklight.models.policy import Policy

    weights = policy_weights(path)
    settings = PolicyConfig(**config["model"]["init_args"]["policy"])
    policy = Policy(replace(settings, random_init=True))  # the weights come from the checkpoint alone
    load_weights(policy, weights, path)
    tokenizer, updates = load_tokenizer(settings), updates_of(path)
    folder = root / f"policy-{updates}" if out is None else Path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    card = model_card(settings.path, updates, config)
    save_policy(policy, tokenizer, eos_ids(settings, tokenizer), folder, card)
    return folder
