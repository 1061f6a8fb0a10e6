"""Folders that cannot be trained are refused in one line with the config key."""

import json

import pytest
import torch
import transformers as T
from architectures import COMMON, LINEAR, OLD
from tiny import VOCABULARY, load, write_kind, write_model

from forklight.models import PolicyConfig
from forklight.models.loading import load_model, load_settings, load_tokenizer


def change(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def refused(build, path, **settings):
    with pytest.raises((ValueError, OSError)) as error:
        build(PolicyConfig(path=str(path), **settings))
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    assert message.startswith("model.policy.")
    return message


def test_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    message = refused(load_settings, tmp_path)
    assert "holds an adapter of some/base, not a model: lora is not supported yet; merge" in message
    assert refused(load_tokenizer, tmp_path) == message


def test_quantised_weights(tmp_path):
    write_model(tmp_path)
    change(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "has quantised weights (quantization_config: gptq)" in refused(load_settings, tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (T.T5Config(vocab_size=VOCABULARY, d_model=16), "is an encoder-decoder (t5)"),
        (T.BartConfig(vocab_size=VOCABULARY, d_model=16), "is an encoder-decoder (bart)"),
        (T.MambaConfig(vocab_size=VOCABULARY, hidden_size=16), "is a model without attention (mamba)"),
        (T.Mamba2Config(vocab_size=VOCABULARY, hidden_size=32, num_heads=8, head_dim=8), "without attention (mamba2)"),
        (T.CLIPConfig(), "(clip) is no causal language model"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_is_no_decoder(tmp_path, config, words):
    config.save_pretrained(tmp_path)
    assert words in refused(load_model, tmp_path, random_init=True)


def test_weights_in_a_pickle(tmp_path):
    write_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "has its weights in pytorch_model.bin: only safetensors are read" in refused(load_model, tmp_path)


def test_no_weights(tmp_path):
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "has no weights: no model.safetensors there" in refused(load_model, tmp_path)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_weights_that_are_cut_short(tmp_path, share):
    write_model(tmp_path)
    file = tmp_path / "model.safetensors"
    every = file.read_bytes()
    file.write_bytes(every[: int(share * len(every))])
    message = refused(load_model, tmp_path)
    assert f"model.safetensors ({int(share * len(every)):,} bytes) is damaged or cut short" in message


def test_weights_that_are_missing_would_be_random(tmp_path):
    write_model(tmp_path)
    change(tmp_path, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    assert "weights of Qwen3ForCausalLM are not in the folder and would be random: " in refused(load_model, tmp_path)


def test_weights_of_another_shape(tmp_path):
    write_model(tmp_path)
    change(tmp_path, intermediate_size=32)
    assert "the weights cannot be read" in refused(load_model, tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path):
    write_kind(tmp_path, T.LlamaConfig(**COMMON))
    assert f"model.policy.path = {str(tmp_path)!r}" in refused(load_tokenizer, tmp_path)


def test_code_of_the_folder_is_not_run_unless_asked_for(tmp_path):
    write_model(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemError('it ran')")
    change(tmp_path, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    message = refused(load_settings, tmp_path)
    assert message.endswith("brings its own code: read it, then set model.policy.trust_remote_code")
    assert "it ran" in refused(load_settings, tmp_path, trust_remote_code=True)


def test_flash_attention_that_is_not_installed(tmp_path):
    message = refused(load_model, write_model(tmp_path), attention="flash_attention_2")
    assert message.startswith("model.policy.attention = flash_attention_2 needs the package flash-attn")


def test_attention_that_is_not_sdpa_falls_back_to_eager_and_it_is_said(tmp_path, caplog):
    path = write_kind(tmp_path, T.BloomConfig(**OLD, hidden_size=16, n_layer=1, n_head=2))
    policy = load(path, "float32")
    assert policy.model.config._attn_implementation == "eager"
    assert not policy.packing
    assert f"model.policy.attention: {path} (bloom) has no sdpa, eager is used" in caplog.text


def test_of_a_multimodal_model_the_text_model_is_trained_and_it_is_said(tmp_path, caplog):
    config = T.Gemma3Config(text_config=COMMON | {"head_dim": 8}, vision_config={
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    })  # fmt: skip
    T.AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    policy = load(str(tmp_path), "float32")
    frozen = sum(weight.numel() for weight in policy.parameters() if not weight.requires_grad)
    assert f"of {tmp_path} the text model is trained; {frozen:,} other weights stay as they are" in caplog.text
    assert all(weight.requires_grad for weight in policy.body.parameters())
    policy.model.save_pretrained(tmp_path / "again")
    assert type(load(str(tmp_path / "again"), "float32").model) is type(policy.model)


def test_the_text_model_of_a_multimodal_folder_has_its_weights(tmp_path):
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    torch.manual_seed(0)
    whole = T.AutoModelForImageTextToText.from_config(T.Qwen3_5Config(text_config=LINEAR, vision_config=eyes))
    whole.save_pretrained(tmp_path)
    policy, ids = load(str(tmp_path), "float32"), torch.arange(2, 20)[None]
    with torch.no_grad():
        expected = whole.eval()(input_ids=ids).logits
        found = policy.model.eval()(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
