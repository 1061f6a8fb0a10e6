"""The table at the start of every run: all sizes in sequences and tokens, and the passes each rollout will run."""

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from forklight.algo.plan import Passes
from forklight.data.datamodule import MathDataModule
from forklight.module import ForkGRPOModule


class StartupTable(Callback):
    """Prints the sizes once, on rank 0, before the first step."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is built, nothing has been trained."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(pl_module, ForkGRPOModule) and isinstance(data, MathDataModule) and trainer.is_global_zero:
            Console().print(startup_table(trainer, pl_module, data))


def startup_table(trainer: Trainer, module: ForkGRPOModule, data: MathDataModule) -> Table:
    """The table, also for tests."""
    p, g, k, a = data.prompts_per_rollout, data.answers_per_prompt, data.updates_per_rollout, data.micro_batches
    ranks, sequences = trainer.world_size, p * g
    limit = module.rollout_spec.max_new_tokens
    passes = Passes.of(module.selection, updates=k, micro_batches=a)
    s = module.selection
    parameters = sum(parameter.numel() for parameter in module.policy.parameters())
    rows = [
        ("policy", f"{module.policy_config.path}, {parameters:,} parameters, {trainer.precision}"),
        ("rollout", f"P*G = {p} problems * {g} answers = {sequences} sequences, at most {sequences * limit:,} tokens"),
        ("update", f"K = {k} per rollout: {p // k} problems, {sequences // k} sequences each"),
        ("micro-batch", f"A = {a} per update on {ranks} rank(s): about {sequences // (k * a * ranks)} sequences"),
        ("policy gradient", "on-policy" if k == 1 else f"off-policy after the first of {k} updates"),
        ("selection", f"keep {s.keep} {s.rho:.0%} of {s.over}, scope {s.scope}, entropy of {s.entropy_of} policy, "
                      f"denominator {s.denominator}"),
        ("passes", passes.describe() + (", reference" if module.kl_coef else "")),
        ("training", f"{trainer.max_steps} updates = {trainer.max_steps / k:g} rollouts; evaluation every "
                     f"{data.eval_every_rollouts} rollouts on {', '.join(data.val_sets) or 'nothing'}"),
    ]  # fmt: skip
    table = Table(title="forklight", show_header=False, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table
