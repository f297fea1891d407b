"""The architecture, read from the syntax tree: imports point down only, and each library has its rooms."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = [
    ("kd.rows", "kd.audit_rows", "kd.contract", "kd.arrow", "kd.spans", "kd.stop_words", "kd.portions", "kd.errors", "kd.frozen"),
    (
        "kd.tasks",
        "kd.agreement_rows",
        "kd.addresses",
        "kd.filesystems",
        "kd.places",
        "kd.csv_rows",
        "kd.corpus",
        "kd.examples",
        "kd.uids",
        "kd.side",
        "kd.sources",
        "kd.store",
        "kd.refusals",
        "kd.fingerprints",
        "kd.manifests",
        "kd.attempts",
        "kd.tries",
        "kd.copies",
        "kd.shards",
        "kd.specs",
        "kd.architectures",
        "kd.origins",
        "kd.pooling",
        "kd.models",
        "kd.loading",
        "kd.cluster_config",
    ),
    ("kd.families", "kd.batching", "kd.cost", "kd.vocabulary", "kd.config_keys"),
    ("kd.attribution", "kd.rationales", "kd.training", "kd.evaluation"),
    ("kd.config", "kd.reporting"),
    ("kd.planning",),
    ("kd.ray_corpus", "kd.ray_data", "kd.ray_train", "kd.ray_worker", "kd.deepspeed_engine"),
    ("jobs",),
]
"""From the ground up. A module may import from its own room, from layers below, and in the first two layers from its own layer."""

OPEN_LAYERS = 2

LIBRARIES = {
    "ray": ("jobs", "kd.ray_corpus", "kd.ray_data", "kd.ray_train", "kd.ray_worker"),
    "deepspeed": ("kd.deepspeed_engine",),
    "captum": ("kd.attribution.methods",),
    "peft": ("kd.training.adapters",),
    "torch": (
        "kd.loading",
        "kd.pooling",
        "kd.families",
        "kd.batching",
        "kd.cost",
        "kd.attribution",
        "kd.training",
        "kd.evaluation",
        "kd.ray_worker",
        "kd.deepspeed_engine",
    ),
    "datasets": ("kd.tasks", "kd.store", "kd.training", "kd.ray_worker"),
    "pyarrow": (
        "kd.arrow",
        "kd.store",
        "kd.refusals",
        "kd.filesystems",
        "kd.places",
        "kd.corpus",
        "kd.ray_data",
        "kd.ray_corpus",
    ),
    "tensorboardX": ("kd.training.events", "kd.ray_worker"),
    "pandas": (),
}

HEAVY = ("torch", "ray", "transformers", "captum", "deepspeed", "datasets", "peft", "tensorboardX")


def modules() -> list[tuple[str, Path]]:
    paths = [path for package in ("kd", "jobs") for path in sorted((ROOT / package).rglob("*.py"))]
    return [(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path) for path in paths]


MODULES = modules()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: one import path per name, so no relative import"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names if node.module in ("kd", "jobs"))


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def layer(module: str) -> tuple[int, str] | None:
    for level, rooms in enumerate(LAYERS):
        for room in rooms:
            if within(module, room):
                return level, room
    return None


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_every_module_has_a_layer_and_imports_point_down(module: str, path: Path) -> None:
    if module == "kd":
        return
    place = layer(module)
    assert place, f"{module} is in no layer; give it one in LAYERS and in CONTRIBUTING.md"
    level, room = place
    for line, imported in imports(path):
        target = layer(imported)
        if target is None or target[1] == room:
            continue
        same_open_layer = target[0] == level and level < OPEN_LAYERS
        in_ray_layer = target[0] == level and room.startswith("kd.ray_")
        assert target[0] < level or same_open_layer or in_ray_layer, f"{path.name}:{line}: {module} may not import {imported}"


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_each_library_stays_in_its_rooms(module: str, path: Path) -> None:
    for line, imported in imports(path):
        rooms = LIBRARIES.get(imported.partition(".")[0])
        if rooms is not None:
            assert any(within(module, room) for room in rooms), f"{path.name}:{line}: {imported} is not allowed in {module}"


@pytest.mark.parametrize("path", [path for _, path in MODULES if path.name == "__init__.py"], ids=str)
def test_a_package_holds_a_docstring_only(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert len(body) == 1, f"{path}: expected a docstring and nothing else"
    assert isinstance(body[0], ast.Expr)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_reading_a_config_loads_nothing_heavy() -> None:
    code = f"""
import sys
from kd.config import read_config
read_config("x", "", ["configs/quickstart.yaml"])
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_attribution_and_training_work_without_ray_and_deepspeed() -> None:
    code = """
import sys
sys.modules["ray"] = sys.modules["deepspeed"] = None
import kd.attribution.engine, kd.attribution.methods, kd.training.loop, kd.training.data, kd.evaluation.answers
print("imported")
"""
    assert run_python(code).strip() == "imported"
