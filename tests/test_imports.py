"""Imports run one way, and light commands stay light (docs/architecture.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each part may import of the others; its own modules are always allowed.
ALLOWED = {
    "hnpretrain.config": set(),
    "hnpretrain.runs": set(),
    "hnpretrain.shards": set(),
    "hnpretrain.losses": set(),
    "hnpretrain.bench": {
        "hnpretrain.config",
        "hnpretrain.data",
        "hnpretrain.losses",
        "hnpretrain.models",
        "hnpretrain.shards",
        "hnpretrain.train",
    },
    "hnpretrain.worlds": {"hnpretrain.config", "hnpretrain.shards"},
    "hnpretrain.inpaint": {
        "hnpretrain.config",
        "hnpretrain.models",  # to ask a model which caption a picture prefers
        "hnpretrain.shards",
        "shard_tools",
    },
    "hnpretrain.data": {"hnpretrain.shards"},
    "hnpretrain.models": {
        "hnpretrain.config",
        "hnpretrain.data",
        "hnpretrain.runs",
        "hnpretrain.shards",
    },
    "hnpretrain.eval": {"hnpretrain.config", "hnpretrain.models", "hnpretrain.shards"},
    "hnpretrain.train": {
        "hnpretrain.cli",
        "hnpretrain.config",
        "hnpretrain.data",
        "hnpretrain.eval",  # benchmarks of the model that is being trained
        "hnpretrain.losses",
        "hnpretrain.models",
        "hnpretrain.runs",
        "hnpretrain.shards",
    },
    "hnpretrain.demo": {
        "hnpretrain.data",
        "hnpretrain.shards",
        "hnpretrain.train",
        "hnpretrain.worlds",
    },
    "shard_tools": {"hnpretrain.bench", "hnpretrain.config", "hnpretrain.shards"},
    "launch": {
        "hnpretrain.config",
        "hnpretrain.inpaint",
        "hnpretrain.runs",
        "hnpretrain.shards",
        "hnpretrain.train",
        "shard_tools",
    },
}


def part_of(module):
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "hnpretrain" else parts[0]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            # `from hnpretrain import config` imports a module, not a name.
            if node.module == "hnpretrain":
                yield from (f"hnpretrain.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_run_one_way(part):
    place = ROOT / part.replace(".", "/")
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files
    for path in files:
        for module in imports_of(path):
            other = part_of(module)
            if other in ("hnpretrain", part) or other.split(".")[0] not in {
                "hnpretrain",
                "shard_tools",
                "launch",
            }:
                continue
            assert other in ALLOWED[part], f"{path.relative_to(ROOT)} imports {module}"


def test_every_part_has_a_rule():
    parts = {f"hnpretrain.{p.stem}" for p in (ROOT / "hnpretrain").iterdir() if p.stem[0] != "_"}
    assert parts - {"hnpretrain.cli"} == {p for p in ALLOWED if p.startswith("hnpretrain.")}


def loaded_by(statement):
    """Top-level names of the modules that a statement loads."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import hnpretrain.cli",
        "import shard_tools.job",
        "import shard_tools.negatives.strategies",
        "import shard_tools.bench.negatives",
        "from shard_tools.lean_spacy import spacy",
        "import hnpretrain.shards.index",
        "import hnpretrain.worlds.build",
        "import launch.follow",
        "import hnpretrain.inpaint.settings",
        "import hnpretrain.inpaint.export",
    ],
)
def test_no_torch_where_none_is_needed(statement):
    assert not loaded_by(statement) & {"torch", "deepspeed", "open_clip"}


def test_the_command_line_loads_next_to_nothing():
    heavy = {"torch", "deepspeed", "open_clip", "spacy", "numpy", "pyarrow", "fsspec", "omegaconf"}
    heavy |= {"sklearn", "scipy", "thinc", "transformers", "nltk", "yaml"}
    assert not loaded_by("import hnpretrain.cli") & heavy


@pytest.mark.parametrize("statement", ["import shard_tools.job", "import shard_tools.negatives"])
def test_models_are_loaded_by_who_uses_them(statement):
    """A job that only waits, plans or refuses has no use for seconds of imports."""
    assert not loaded_by(statement) & {"spacy", "thinc", "sklearn", "scipy", "transformers", "nltk"}


def test_the_loss_can_be_lifted_out():
    loaded = loaded_by("import hnpretrain.losses")
    assert "torch" in loaded
    assert not loaded & {"deepspeed", "open_clip", "torchvision", "omegaconf", "fsspec", "spacy"}
