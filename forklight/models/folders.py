"""Model folders that cannot be read: which file is wrong, in one line that names the config key."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open


def check_folder(path: str, folder: Path) -> None:
    """Refuses a local folder without a config, and one of an adapter.

    Args:
        path: as the config gives it; names on the model hub are not checked.
        folder: the same, resolved.

    Raises:
        FileNotFoundError: there is no folder with a config.json.
        ValueError: the folder holds an adapter.
    """
    looks_local = path == "tiny" or path.startswith((".", "/", "~")) or path.count("/") != 1
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text()).get("base_model_name_or_path")
        raise ValueError(
            f"model.policy.path = {path!r} holds an adapter of {base}, not a model: lora is not supported yet; merge "
            "the adapter into its model and give the folder of the result"
        )
    if looks_local and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model.policy.path = {path!r}: no folder with a config.json there")


def check_weights(path: str, folder: Path) -> None:
    """Refuses a local folder whose weights cannot be read: none, in another format, or cut short.

    Raises:
        OSError: naming the file.
    """
    if not folder.is_dir():
        return
    files = sorted(folder.glob("*.safetensors"))
    others = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    if not files and others:
        raise OSError(
            f"model.policy.path = {path!r} has its weights in {others[0]}: only safetensors are read, as a pickle can "
            "run code; load it with transformers and save_pretrained it"
        )
    if not files:
        raise OSError(
            f"model.policy.path = {path!r} has no weights: no model.safetensors there, nor shards of it; see "
            "model.policy.random_init"
        )
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"model.policy.path = {path!r}: {file.name} ({file.stat().st_size:,} bytes) is damaged or cut short: "
                f"{error}"
            ) from error


@contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Turns the errors of transformers on what it reads into one line with the config key.

    Args:
        path: as the config gives it.
        what: `the config`, `the weights`, `the tokenizer`.

    Raises:
        OSError: for a file that is not there.
        ValueError: for everything else.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"model.policy.path = {path!r}: {_line(error)}") from error
    except ImportError as error:
        raise ValueError(f"model.policy.path = {path!r}: {what} needs a package: {_line(error)}") from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"model.policy.path = {path!r} brings its own code: read it, then set model.policy.trust_remote_code"
            ) from error
        raise ValueError(
            f"model.policy.path = {path!r}: {what} cannot be read: {type(error).__name__}: {_line(error)}"
        ) from error


def _line(error: BaseException) -> str:
    """The first 300 characters of a message, on one line."""
    return " ".join(str(error).split())[:300]
