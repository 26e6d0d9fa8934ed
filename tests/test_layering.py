"""No import runs upwards or in a circle, be it inside of functions; what is private to torch stays in one file, and no
file is long."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"ir": "aatc.ir", "passes": "aatc.passes", "backends": "aatc.backends", "shaders": "aatc.shaders"}
OUTSIDE = ("tests", "bench", "examples")

# What each layer may import besides itself; None stands for everything of ours.
MAY_IMPORT: dict[str, set[str] | None] = {
    "aatc.ir": set(),
    "aatc.geometry": set(),
    "aatc.shaders": set(),
    "aatc.passes": {"aatc.ir", "aatc.geometry"},
    "aatc.backends": {"aatc.ir", "aatc.passes", "aatc.shaders"},
    "aatc": None,
}


@dataclass(frozen=True)
class Import:
    line: int
    target: str
    for_types: bool  # for the type checker only


def our_modules(root: Path) -> dict[str, Path]:
    """Module name to file, for every Python file of our folders under ``root``; links are not followed."""
    found = {}
    for folder, package in {**FOLDERS, "aatc": "aatc"}.items():
        for path in sorted((root / folder).rglob("*.py")):
            inside = path.relative_to(root / folder)
            if folder == "aatc" and inside.parts[0] in FOLDERS:
                continue
            parts = [*inside.parent.parts, *([] if path.stem == "__init__" else [path.stem])]
            found[".".join([package, *parts])] = path
    return found


def layer_of(module: str) -> str:
    """The deepest layer that ``module`` lies in."""
    return max((layer for layer in MAY_IMPORT if f"{module}.".startswith(f"{layer}.")), key=len)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _statements(node: ast.AST, for_types: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, for_types
        yield from _statements(child, for_types or _is_for_types(child))


def imports_of(module: str, path: Path, known: set[str]) -> list[Import]:
    """Every import in a file: statements anywhere in it, and ``import_module`` of a constant name."""
    found = []
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node, for_types in _statements(ast.parse(path.read_text("utf-8"), str(path))):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *filter(None, [base])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                targets.append(inner if inner in known else base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            targets = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        found += [Import(node.lineno, target, for_types) for target in targets]
    return found


def violations(root: Path) -> list[str]:
    """One line per import of our folders under ``root`` that breaks a rule, and per import circle."""
    modules = our_modules(root)
    problems = []
    circles = nx.DiGraph()
    for module, path in modules.items():
        layer = layer_of(module)
        allowed = MAY_IMPORT[layer]
        for item in imports_of(module, path, set(modules)):
            where = f"{path.relative_to(root)}:{item.line}"
            top = item.target.split(".")[0]
            if top in FOLDERS:
                problems.append(f"{where}: imports {item.target}; its one name is aatc.{item.target}")
            elif top in OUTSIDE:
                problems.append(f"{where}: the package imports {item.target}, which is not installed")
            elif top == "aatc":
                target = layer_of(item.target)
                if target != layer and allowed is not None and target not in allowed:
                    problems.append(f"{where}: {layer} imports {item.target}, of the layer {target}")
                if not item.for_types and item.target in modules and item.target != module:
                    circles.add_edge(module, item.target)
    for group in nx.strongly_connected_components(circles):
        if len(group) > 1:
            problems.append(f"these import each other: {', '.join(sorted(group))}")
    return problems


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")


def test_no_import_of_ours_runs_upwards_or_in_a_circle():
    assert len(our_modules(ROOT)) > len(MAY_IMPORT)
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("ir/ops.py", "from aatc.passes import fuse"),
        ("ir/ops.py", "import aatc.geometry"),
        ("ir/ops.py", "import aatc"),
        ("ir/ops.py", "from aatc import errors"),
        ("ir/ops.py", "from ..passes import fuse"),
        ("ir/ops.py", "def late():\n    import aatc.runtime"),
        ("ir/ops.py", "import importlib\nimportlib.import_module('aatc.passes.fuse')"),
        ("ir/ops.py", "import passes.fuse"),
        ("aatc/geometry/manifolds/sphere.py", "from aatc.ir import ops"),
        ("passes/fuse.py", "import aatc.backends"),
        ("passes/analysis/cohomology/hodge.py", "from aatc.backends.cpu import emit"),
        ("backends/cpu/emit.py", "from aatc import runtime"),
        ("backends/cpu/emit.py", "from aatc.geometry import sphere"),
        ("shaders/__init__.py", "import aatc.ir.ops"),
        ("aatc/api.py", "from bench import peers"),
    ],
)
def test_a_planted_upward_import_is_caught(tmp_path, file, text):
    plant(tmp_path, {"passes/fuse.py": "", "aatc/runtime.py": "", "aatc/geometry/manifolds/sphere.py": "", file: text})
    (problem,) = violations(tmp_path)
    assert problem.startswith(f"{file}:")


def test_downward_imports_pass(tmp_path):
    plant(
        tmp_path,
        {
            "ir/__init__.py": "from aatc.ir.ops import x",
            "ir/ops.py": "import torch\nx = 1",
            "passes/fuse.py": "from aatc.ir import ops\nfrom aatc.geometry import sphere",
            "backends/cpu/emit.py": "import aatc.ir, aatc.shaders",
            "aatc/geometry/manifolds/sphere.py": "",
            "aatc/api.py": "from aatc.passes import fuse\nimport aatc.backends.cpu, aatc.runtime",
            "aatc/runtime.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import aatc.api\n"
            "def late():\n    from aatc import ir",
        },
    )
    assert violations(tmp_path) == []


@pytest.mark.parametrize("back", ["if True:\n    import aatc.ir.a", "def late():\n    from aatc.ir.a import x"])
def test_a_planted_circle_is_caught(tmp_path, back):
    plant(tmp_path, {"ir/a.py": "from aatc.ir import b", "ir/b.py": back})
    (problem,) = violations(tmp_path)
    assert "aatc.ir.a, aatc.ir.b" in problem


# --- what is private to torch ------------------------------------------------------------------------------
PRIVATE = "aatc/frontend/private_torch/"
# Other files that need some of it, and why; everything below the frontend may not import it from there.
ALSO_PRIVATE = {
    "aatc/ops.py": {"torch._library": "the op is registered when aatc is imported, before there is a frontend"},
    "aatc/parts.py": {"torch.fx.experimental": "Dynamo traces these functions, and knows what it must not trace"},
    "backends/vulkan/model/tracing.py": {
        "torch._decomp": "what operators are made of, and their derivatives",
        "torch._subclasses": "tensors without data, which derivatives are traced at",
        "torch.fx.experimental": "tracing operators and their derivatives",
    },
    "ir/effects.py": {"torch._C": "what an operator's dispatch entries say of it"},
    "ir/interpreter.py": {"torch._C": "the type of an operator's returns"},
    "ir/stage_evaluate.py": {"torch._C": "whether two tensors share memory"},
    "ir/transforms.py": {
        "torch._C": "transforms and modes around a call",
        "torch._VF": "tangents of dual numbers",
        "torch._add_batch_dim": "vmap of the older kind",
        "torch._remove_batch_dim": "vmap of the older kind",
    },
    "passes/analysis/torch_recorder.py": {"torch._C": "whether a backward runs"},
}
# The classes of operators have no public name, and this one for long; what else looks private but is not.
OPEN = ("torch._ops", "torch.__version__", "torch.__file__")


def private_parts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, private module of torch) for every one a file imports or reaches through ``torch``."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        for name in names:
            parts = name.split(".")
            if parts[0] != "torch" or len(parts) < 2:
                continue
            if parts[1].startswith("_"):
                yield node.lineno, ".".join(parts[:2])
            elif parts[1:3] == ["fx", "experimental"]:
                yield node.lineno, "torch.fx.experimental"


def test_what_is_private_to_torch_stays_in_one_place():
    found: dict[str, set[str]] = {}
    private: set[str] = set()
    for path in our_modules(ROOT).values():
        name = path.relative_to(ROOT).as_posix()
        parts = {part for _, part in private_parts(path) if part not in OPEN}
        if name.startswith(PRIVATE):
            private |= parts
        else:
            found[name] = parts
    assert {"torch._dynamo", "torch._guards", "torch.fx.experimental"} <= private
    assert {name: parts for name, parts in found.items() if parts} == {n: set(why) for n, why in ALSO_PRIVATE.items()}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("import torch._dynamo", "torch._dynamo"),
        ("def late():\n    from torch._dynamo import exc", "torch._dynamo"),
        ("from torch import _guards", "torch._guards"),
        ("from torch.fx.experimental.proxy_tensor import make_fx", "torch.fx.experimental"),
        ("x = torch._C._dynamo.eval_frame", "torch._C"),
    ],
)
def test_a_planted_private_part_is_caught(tmp_path, text, part):
    plant(tmp_path, {"x.py": text})
    assert part in {p for _, p in private_parts(tmp_path / "x.py")}


def test_no_file_is_longer_than_500_lines():
    lengths = {p.relative_to(ROOT).as_posix(): p.read_text("utf-8").count("\n") for p in our_modules(ROOT).values()}
    assert {name: n for name, n in lengths.items() if n > 500} == {}
