"""Half-precision weights that small steps do not move are counted."""

from types import SimpleNamespace

import pytest
import torch
from tiny import load, write_model

from forklight.callbacks.small_steps import SmallSteps


def train(path, dtype, lr, *, updates=5, grads=True):
    """Some updates of AdamW with random gradients, as the Trainer would tell the callback of them."""
    policy = load(path, dtype)
    module, trainer = SimpleNamespace(policy=policy), SimpleNamespace(is_global_zero=True)
    optimizer, callback = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0), SmallSteps()
    generator = torch.Generator().manual_seed(0)
    callback.on_train_start(trainer, module)
    for _ in range(updates):
        for weight in policy.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight) * grads
        callback.on_before_optimizer_step(trainer, module, optimizer)
        optimizer.step()
        callback.on_train_batch_end(trainer, module, None, None, 0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("policy"), hidden_size=32, initializer_range=0.02)


def test_a_small_rate_moves_few_bfloat16_weights(path, caplog):
    train(path, "bfloat16", 1e-6)
    (message,) = [record.getMessage() for record in caplog.records]
    start = "model.policy.dtype = bfloat16: after 5 updates at a learning rate of 1e-06, "
    assert message.startswith(start)
    assert 95 <= int(message.removeprefix(start).split(" %")[0]) <= 100
    assert "trainer.precision = bf16-mixed" in message


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("float32", {"lr": 1e-6}),
        ("bfloat16", {"lr": 1e-2}),
        ("bfloat16", {"lr": 1e-6, "updates": 4}),
        ("bfloat16", {"lr": 1e-6, "grads": False}),
    ],
    ids=["single precision", "large steps", "too early", "no gradient"],
)
def test_nothing_is_said_otherwise(path, caplog, dtype, settings):
    train(path, dtype, **settings)
    assert not caplog.records
