"""`aatc.analysis` hands on all that the families' modules define, each name from one place."""

import ast
import importlib
from pathlib import Path

import pytest

from aatc import analysis

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("arithmetic", "cohomology", "crystal", "heads", "homotopy", "information", "quantum", "scale")
#: Parts that families are made of, for those who write one.
INSIDE = {
    "__init__", "base", "capture", "deadline", "result", "smith", "reduction", "field_algebra", "stochastic",
    "annotations", "bitsets", "field_annotations", "flag_persistence", "rips_routes",
    "attention_rows", "given_weights", "pattern_source", "torch_attention", "torch_recorder", "verify_heads",
    "torch_following", "torch_heads", "torch_memory", "torch_scores", "torch_subclasses",
    "verify_arithmetic", "verify_cohomology", "verify_groups", "verify_homotopy", "verify_information",
    "verify_spectral", "verify_graphs", "verify_models", "verify_chain", "verify_integers", "verify_components",
    "verify_homology", "verify_hodge", "verify_fundamental",
    "arithmetic_pass", "cohomology_pass", "homotopy_pass", "information_pass",
    "heads_pass", "topology_pass",
    "claims", "block_sums", "verify_anomalies", "verify_chains", "verify_exponents", "verify_maps", "verify_scale",
    "scale_pass",
    "verify_quantum", "verify_states", "verify_paths", "tensors", "quantum_pass",
    "spectral", "translations", "verify_bands", "verify_crystal", "verify_lattices", "crystal_pass",
}  # fmt: skip
#: Every module estimates its own cost.
PRIVATE = {"estimate_cost"}


def sources(family: str) -> list[str]:
    tree = ast.parse((ROOT / "aatc" / "analysis" / f"{family}.py").read_text("utf-8"))
    return [n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module != "__future__"]


def defined(module: str) -> set[str]:
    path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {n.name for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, kinds) and n.name[0] != "_"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_public_name_is_handed_on(family):
    module = getattr(analysis, family)
    for source in sources(family):
        for name in defined(source) - PRIVATE:
            assert name in module.__all__, f"{source}.{name}"
            assert getattr(module, name) is getattr(importlib.import_module(source), name)


def test_every_module_belongs_to_a_family():
    known = {s.rpartition(".")[2] for family in FAMILIES for s in sources(family)}
    found = {p.stem for p in (ROOT / "passes" / "analysis").rglob("*.py")}
    assert found - known == INSIDE
