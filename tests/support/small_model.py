"""A small Qwen3 with a byte-level BPE tokenizer and a chat template: all that a model folder has, but tiny."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config

EOS, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL = [PAD, "<|im_start|>", EOS]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXTS = [
    r"So the answer is \boxed{5}. Therefore \(x = 3\), because \frac{1}{2} + 2 = 2.5.",
    "How many apples does she have? Please reason step by step.",
    "However, we know that the sum of 0 1 2 3 4 5 6 7 8 9 is 45. Thus, wait, suppose the number is given.",
]


def write_small_model(folder: Path, *, seed: int = 0, guesses: bool = False) -> str:
    r"""Writes weights, config, generation settings and tokenizer, and returns the folder.

    Every byte is a token, so any text can be written. The generation settings cut the distribution as those of Qwen's
    models do: who obeys them samples other answers.

    Args:
        folder: where to.
        seed: of the weights.
        guesses: teach the random model to answer `\boxed{d}` or `Thus \boxed{d}` with a random digit, so that answers
            differ in length and some answers to real problems are right; it takes three seconds.
    """
    tokenizer = _tokenizer()
    pad, eos = (tokenizer.convert_tokens_to_ids(token) for token in (PAD, EOS))
    shape = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=pad,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape)
        if guesses:
            _teach(model, tokenizer, random.Random(seed))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    cut = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    ends = {"bos_token_id": pad, "eos_token_id": [eos, pad], "pad_token_id": pad}
    (folder / "generation_config.json").write_text(json.dumps(ends | cut))
    return str(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=PAD, chat_template=CHAT_TEMPLATE)


def _teach(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
    """Next-token loss on answers after prompts of any text, as both kinds of templates end them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    openings = ["<|im_end|>\n<|im_start|>assistant\n", "\n\nAssistant:\n"]
    for _ in range(100):
        rows, labels = [], []
        for _ in range(16):
            prompt = [rng.randrange(3, len(tokenizer)) for _ in range(rng.randrange(20))]
            prompt += tokenizer.encode(rng.choice(openings))
            answer = tokenizer.encode(rf"{rng.choice(['', 'Thus '])}\boxed{{{rng.randrange(10)}}}{EOS}")
            space = 64 - len(prompt) - len(answer)
            rows.append(prompt + answer + [0] * space)
            labels.append([-100] * len(prompt) + answer + [-100] * space)
        loss = model(input_ids=torch.tensor(rows), labels=torch.tensor(labels)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
