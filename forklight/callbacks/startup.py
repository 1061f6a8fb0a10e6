"""The table at the start of every run: all sizes in sequences and tokens, and the passes each rollout will run."""

from dataclasses import fields
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forklight.algo.advantages import Advantage, AdvantageName
from forklight.algo.config import AlgorithmConfig
from forklight.algo.ratios import ClipRange
from forklight.algo.selection.covariance import CovarianceTokens
from forklight.algo.selection.rho import RhoSchedule
from forklight.algo.selection.spec import PRESETS, ForkSelection
from forklight.data.datamodule import MathDataModule
from forklight.module import ForkGRPOModule
from forklight.verify import describe as describe_verifier

FEW = 3
"""A selection that differs from every preset in more keys than this is named `own`."""


class StartupTable(Callback):
    """Prints the sizes once, on rank 0, before the first step."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs when everything is built and nothing is trained yet."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(pl_module, ForkGRPOModule) and isinstance(data, MathDataModule) and trainer.is_global_zero:
            Console().print(startup_table(trainer, pl_module, data))


def startup_table(trainer: Trainer, module: ForkGRPOModule, data: MathDataModule) -> Table:
    """The table, also for tests."""
    p, g, k, a = data.prompts_per_rollout, data.answers_per_prompt, data.updates_per_rollout, data.micro_batches
    ranks, sequences = trainer.world_size, p * g
    limit = module.rollout_config.max_new_tokens
    config, passes = module.config, module.config.schedule(k, a).describe(k)
    parameters = sum(parameter.numel() for parameter in module.policy.parameters())
    rows = [
        ("policy", f"{module.policy_config.path}, {parameters:,} parameters, {trainer.precision}"),
        ("rollout", f"P*G = {p} problems * {g} answers = {sequences} sequences, at most {sequences * limit:,} tokens, "
                    f"by {type(module.sampler).__name__}"),
        ("reward", escape(describe_verifier(data.verifier))),
        ("update", f"K = {k} per rollout: {p // k} problems, {sequences // k} sequences each"),
        ("micro-batch", f"A = {a} per update on {ranks} rank(s): about {sequences // (k * a * ranks)} sequences"),
        ("policy gradient", "on-policy" if k == 1 else f"off-policy after the first of {k} updates"),
        ("selection", describe(config.selection)),
        ("loss", describe_loss(config, module.advantage)),
        ("passes", passes + (", reference" if config.reference_in_loss else "")
                   + (", policy and reference for the KL in the reward" if config.kl_in_reward else "")),
        ("training", f"{trainer.max_steps} updates = {trainer.max_steps / k:g} rollouts; evaluation every "
                     f"{data.eval_every_rollouts} rollouts on {', '.join(data.val_sets) or 'nothing'}"),
    ]  # fmt: skip
    if stop := module.rollout_config.stop:
        rows.insert(2, ("stop", f"at EOS, {escape(', '.join(map(repr, stop)))}"))
    table = Table(title="forklight", show_header=False, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def describe(selection: ForkSelection) -> str:
    """Every key of a selection, after the name of its preset: `trl but rho 0.1: rho 0.1, keep top, scope ...`.

    The preset is the one that differs in the fewest keys, the first such of PRESETS; `own` if more than FEW differ.
    """
    values = {field.name: getattr(selection, field.name) for field in fields(selection)}
    changed = {
        name: [key for key, value in values.items() if value != getattr(preset, key)]
        for name, preset in PRESETS.items()
    }
    nearest = min(changed, key=lambda name: len(changed[name]))
    keys = {key: f"{key} {_shown(value)}" for key, value in values.items()}
    but = ", ".join(keys[key] for key in changed[nearest])
    title = "own" if len(changed[nearest]) > FEW else f"{nearest} but {but}" if but else nearest
    return f"{title}: {', '.join(keys.values())}"


def describe_loss(config: AlgorithmConfig, advantage: AdvantageName | Advantage) -> str:
    """Objective, advantage and further terms: `Dapo (clip -0.2 +0.28), advantage grpo, KL k3 0.04 in loss`."""
    follows = {"needs_reference", "trains_zero_advantage"}  # these follow from the other arguments
    values = {name: value for name, value in vars(config.objective).items() if name not in follows}
    arguments = ", ".join(f"{name} {_shown(value)}" for name, value in values.items())
    parts = [f"{type(config.objective).__name__} ({arguments})", f"advantage {_shown(advantage)}"]
    if config.kl.coef:
        parts.append(f"KL {config.kl.estimator} {config.kl.coef:g} in the {config.kl.placement}")
    if config.needs_reference:
        every = config.kl.refresh_every_rollouts
        parts.append(f"reference refreshed every {every} rollouts" if every else "reference frozen")
    if config.entropy_coef:
        parts.append(f"entropy bonus {config.entropy_coef:g}")
    if config.correction.method != "none":
        parts.append(f"correction {config.correction.method} {config.correction.low:g} to {config.correction.high:g}")
    if config.old_logp_from == "sampler":
        parts.append("old log-probabilities of the sampler")
    return ", ".join(parts)


def _shown(value: Any) -> str:
    """A value on one line, as in a config; a user-defined score by its class."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float() | str():
            return str(value)
        case tuple():
            return "+".join(value)
        case dict():
            return str(RhoSchedule.of(value))
        case None:
            return "none"
        case ClipRange():
            return f"-{value.low:g} +{value.high:g}" + (f" dual {value.dual:g}" if value.dual else "")
        case CovarianceTokens():
            between = "" if value.low is None else f" between {value.low:g} and {value.high:g}"
            return f"{value.share:g} of the kept tokens{between}"
        case _:
            return type(value).__name__
