"""Who may import whom, read from the syntax trees, so that an import inside a function counts like one at the top."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from layers import LEVEL

import forklight

PACKAGE = Path(forklight.__file__).parent
REPOSITORY = PACKAGE.parent

LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
MAY_IMPORT_LIGHTNING = {"module", "supervised", "callbacks", "commands", "cli", "data.datamodule"}
MODELS = {"torch", "torchmetrics", "transformers", "datasets"}
SYSTEM = {
    "os",
    "sys",
    "pathlib",
    "io",
    "shutil",
    "tempfile",
    "glob",
    "subprocess",
    "socket",
    "threading",
    "multiprocessing",
}
FORMATS = {"json", "csv", "pickle", "sqlite3", "yaml", "logging", "urllib", "http", "datasets", "safetensors"}
FORBIDDEN = {
    "types": MODELS,
    "errors": MODELS,
    "stopwatch": MODELS,
    "verify": MODELS,
    "algo": SYSTEM | FORMATS | {"transformers"},
    "metrics": {"transformers", "datasets"},
}
IO_CALLS = {"open", "print", "input"}
IMPORT_CALLS = {"__import__", "import_module", "importlib.import_module"}


def imported_names(module: str, is_package: bool, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported anywhere in the module, relative names resolved."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else []
            start = [*parents, node.module] if node.module else parents
            yield from ((node.lineno, ".".join([*start, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORT_CALLS:
            yield from ((node.lineno, word.value) for word in node.args[:1] if isinstance(word, ast.Constant))


def may_import(module: str, name: str) -> bool:
    """Whether the layer rule lets a module of forklight import that name."""
    inner = module.partition(".")[2]
    part = inner.partition(".")[0] or "__init__"
    root, *rest = name.split(".")
    if root == "forklight":
        target = rest[0] if rest and rest[0] in LEVEL else "__init__"
        return target == part or LEVEL[target] < LEVEL[part]
    if root in LIGHTNING:
        return part in MAY_IMPORT_LIGHTNING or inner in MAY_IMPORT_LIGHTNING
    if root == "vllm":
        return inner.startswith("sampling.vllm")
    return root not in FORBIDDEN.get(part, set())


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What the layer rule says against a module of forklight, one line each."""
    part = module.partition(".")[2].partition(".")[0] or "__init__"
    if part not in LEVEL:
        return [f"{module}: `{part}` is in no layer"]
    tree = ast.parse(source)
    names = imported_names(module, is_package, tree)
    found = [f"{module}:{line} imports {name}" for line, name in names if not may_import(module, name)]
    if part == "algo":
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        found += [
            f"{module}:{call.lineno} calls {name}" for call in calls if (name := ast.unparse(call.func)) in IO_CALLS
        ]
    return found


def modules() -> list[tuple[str, Path]]:
    """Dotted name and path of every module of the package."""
    named = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        named.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return named


@pytest.mark.parametrize(("module", "path"), [pytest.param(*pair, id=pair[0]) for pair in modules()])
def test_layer_rule(module, path):
    assert violations(module, path.read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("forklight.algo.ratios", "from forklight.data.problems import ProblemFile"),
        ("forklight.algo.ratios", "from ..models import policy"),
        ("forklight.algo.ratios", "from forklight import rollout"),
        ("forklight.algo.ratios", "import forklight.verify.workers.pool"),
        ("forklight.algo.ratios", "def f():\n    from transformers import AutoModel"),
        ("forklight.algo.ratios", "import lightning.pytorch as pl"),
        ("forklight.algo.ratios", "import os.path"),
        ("forklight.algo.ratios", "print('loss')"),
        ("forklight.types", "import torch"),
        ("forklight.verify.math.verifier", "if True:\n    import torch.nn"),
        ("forklight.metrics", "from forklight.algo.batch import ForkMask"),
        ("forklight.metrics", "import transformers"),
        ("forklight.data.prompts", "from lightning import LightningDataModule"),
        ("forklight.data.stream", "from forklight.models.policy import Policy"),
        ("forklight.sampling.hf", "import vllm"),
        ("forklight.sampling.hf", "import importlib\nimportlib.import_module('vllm.config')"),
        ("forklight.models.policy", "import pytorch_lightning"),
        ("forklight.module", "from forklight import cli"),
        ("forklight.module", "from forklight.callbacks.evaluate import Evaluate"),
        ("forklight", "import forklight.algo"),
        ("forklight.utils", "import math"),
    ],
)
def test_the_checker_finds_violations(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "forklight.algo.ratios",
            "import math\nimport torch\nfrom forklight.algo.batch import LossOutput\nfrom . import plan",
        ),
        ("forklight.data.datamodule", "from lightning import LightningDataModule\nfrom forklight.types import Problem"),
        ("forklight.sampling.vllm_server", "import vllm\nfrom forklight import __version__"),
        (
            "forklight.callbacks.samples",
            "import lightning\nfrom forklight.module import ForkGRPOModule\nfrom forklight.rollout import sampler",
        ),
        (
            "forklight.metrics",
            "import math\nimport torch\nfrom torchmetrics import Metric\nfrom forklight.types import Problem",
        ),
        ("forklight.verify.workers.pool", "import multiprocessing\nfrom .base import Verifier"),
        ("forklight.commands.lightning_cli", "from forklight.module import ForkGRPOModule\nimport lightning"),
        ("forklight.cli", "from forklight.commands.lightning_cli import ForkCLI"),
    ],
)
def test_the_checker_lets_the_rest_through(module, source):
    assert violations(module, source) == []


@pytest.mark.parametrize(
    ("is_package", "level", "target"), [(True, 1, "algo"), (False, 1, "algo"), (False, 2, "types")]
)
def test_relative_imports_are_resolved(is_package, level, target):
    module = "forklight.algo" if is_package else "forklight.algo.ratios"
    names = imported_names(module, is_package, ast.parse(f"from {'.' * level} import x"))
    assert list(names) == [(1, "forklight.algo.x" if target == "algo" else "forklight.x")]


@pytest.mark.parametrize("module", ["forklight.types", "forklight.verify"])
def test_verifier_workers_load_no_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'lightning'}} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_no_file_names_a_place_on_one_machine():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    place = re.compile(r"(?<![\w.-])/(work|tmp|root|home|Users)/")
    texts = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".jsonl", ".html", ""}
    files = [REPOSITORY / name for name in listed.stdout.splitlines()]
    found = [
        f"{file.relative_to(REPOSITORY)}:{number}"
        for file in files
        if file.suffix in texts and file.is_file()
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if place.search(line)
    ]
    assert len(files) > 10
    assert found == []
