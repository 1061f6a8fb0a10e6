"""Tiny random models of many architectures, with settings that make what is peculiar to each one matter."""

import torch
import transformers as T
from tiny import EOS, VOCABULARY

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
OLD = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": None}
NARROW = COMMON | {"head_dim": 8}
WINDOW = NARROW | {"sliding_window": 8}
LINEAR = NARROW | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
DEEP_EYES = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}

PACKED = {
    "llama": lambda: T.LlamaConfig(**COMMON),
    "gemma": lambda: T.GemmaConfig(**NARROW),
    "cohere": lambda: T.CohereConfig(**COMMON, logit_scale=0.25),
    "granite": lambda: T.GraniteConfig(**COMMON, logits_scaling=4.0, residual_multiplier=0.5),
    "phi": lambda: T.PhiConfig(**COMMON, resid_pdrop=0.1),
    "phi3": lambda: T.Phi3Config(**COMMON),
    "gpt2": lambda: T.GPT2Config(**OLD, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": lambda: T.GPTNeoXConfig(
        **OLD, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64,
    ),
    "olmo2": lambda: T.Olmo2Config(**COMMON),
    "glm4": lambda: T.Glm4Config(**NARROW),
    "smollm3": lambda: T.SmolLM3Config(**COMMON),
    "starcoder2": lambda: T.Starcoder2Config(**COMMON, sliding_window=None),
    "nanochat": lambda: T.NanoChatConfig(**COMMON, final_logit_softcapping=2.0),
    "qwen3_moe": lambda: T.Qwen3MoeConfig(
        **NARROW, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    ),
    "mistral3": lambda: T.Mistral3Config(
        text_config=NARROW | {"model_type": "mistral", "sliding_window": None},
        vision_config=EYES | {"model_type": "pixtral"},
    ),
    "qwen3_vl": lambda: T.Qwen3VLConfig(text_config=NARROW, vision_config=DEEP_EYES),
}  # fmt: skip
"""Trained on rows without padding."""

PADDED = {
    "gemma2": lambda: T.Gemma2Config(**WINDOW, final_logit_softcapping=2.0, attn_logit_softcapping=3.0),
    "gemma3_text": lambda: T.Gemma3TextConfig(**WINDOW, layer_types=["sliding_attention", "full_attention"]),
    "gemma3": lambda: T.Gemma3Config(text_config=WINDOW, vision_config=EYES),
    "gemma4_text": lambda: T.Gemma4TextConfig(
        **WINDOW, final_logit_softcapping=2.0, vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8
    ),
    "cohere2": lambda: T.Cohere2Config(**COMMON, sliding_window=8, logit_scale=0.25),
    "gpt_oss": lambda: T.GptOssConfig(**WINDOW, num_local_experts=4, num_experts_per_tok=2),
    "bloom": lambda: T.BloomConfig(**OLD, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.1),
    "qwen3_5": lambda: T.Qwen3_5Config(text_config=LINEAR, vision_config=DEEP_EYES),
    "llama4_text": lambda: T.Llama4TextConfig(
        **NARROW, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=8
    ),
    "nemotron": lambda: T.NemotronConfig(**COMMON),
    "falcon_h1": lambda: T.FalconH1Config(
        **COMMON, lm_head_multiplier=0.25, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_state=8, mamba_d_head=8
    ),
    "lfm2": lambda: T.Lfm2Config(**COMMON, layer_types=["conv", "full_attention"]),
}
"""Trained in padded batches."""

ARCHITECTURES = PACKED | PADDED


def write(folder, name):
    """Writes such a model, without a tokenizer; weights are large, so that every part of it matters."""
    config = ARCHITECTURES[name]()
    auto = T.AutoModelForCausalLM
    if type(config) not in T.MODEL_FOR_CAUSAL_LM_MAPPING or name in ("gemma3", "qwen3_5"):
        auto = T.AutoModelForImageTextToText
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0 if parameter.ndim > 1 else 1.0).add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return str(folder)
