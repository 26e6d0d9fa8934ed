"""Findings as typed JSON, npz and data frames, and back: nothing but witnesses is left out.

A value is a JSON value where there is one that says the same; anything else is an object with its "type": "integer"
beyond 2⁵³, "float" that is not finite, "complex", "fraction", "tuple", "set", "mapping" (pairs), "array" (dtype, shape,
data), "object" (class and fields). What is read is data: only classes of analyses' results are made of it.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from aatc.analysis.items import item_of
from aatc.passes.analysis.base import Finding
from aatc.passes.analysis.result import AnalysisError, BudgetError, Cost, Result, Undecided

#: Modules whose dataclasses may be made of what is read.
_OURS = ("aatc.passes.analysis.",)
_SAFE = 1 << 53


def row_of(f: Finding, arrays: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
    """One finding as JSON. With ``arrays``, numeric arrays are put there and named."""
    item = item_of(f.item)
    row = {"attention": f.subject, "batch": f.batch, "head": f.head, "family": f.family, "item": f.item}
    row |= {"unit": item.unit}
    r = f.result
    if isinstance(r, Result):
        row |= {"proof_level": r.proof_level, "residual": encoded(float(r.residual), None)}
        row |= {"tolerance": encoded(float(r.tolerance), None), "assumptions": list(r.assumptions)}
        row["witness"] = None if r.witness is None else type(r.witness).__name__
        row["value"] = encoded(r.value, arrays)
        extra = {x.name: getattr(r, x.name) for x in dataclasses.fields(r) if x.name not in _PLAIN}
        if type(r) is not Result:
            row["result"] = {"class": _class_name(type(r)), "fields": {n: encoded(v, arrays) for n, v in extra.items()}}
        return row
    return {**row, "value": encoded(r, arrays)}


_PLAIN = {f.name for f in dataclasses.fields(Result)}


def finding_of(row: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> Finding:
    """The finding that a row says, its witness left out. AnalysisError for what is no such row."""
    try:
        value = decoded(row["value"], arrays)
        if "proof_level" in row:
            own = row.get("result", {"class": _class_name(Result), "fields": {}})
            cls = _class_named(own["class"])
            given = {n: decoded(v, arrays) for n, v in own["fields"].items()}
            if not issubclass(cls, Result):
                raise AnalysisError(f"{own['class']} is no class of results")
            numbers = [decoded(row[n], arrays) for n in ("tolerance", "residual")]
            value = cls(value, row["proof_level"], *numbers, None, tuple(row["assumptions"]), **given)
        return Finding(row["attention"], row["family"], row["item"], value, row["head"], row["batch"])
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        if isinstance(cause, AnalysisError):
            raise
        raise AnalysisError(f"this is no row of an analysis: {cause!r}") from cause


def _class_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _class_named(name: str) -> Any:
    module, _, qualname = name.partition(":")
    if not module.startswith(_OURS) or not qualname.isidentifier():
        raise AnalysisError(f"{name!r} is no class of an analysis", hint="only files that aatc wrote are read")
    try:
        cls = getattr(importlib.import_module(module), qualname)
    except (ImportError, AttributeError):
        raise AnalysisError(f"there is no class {name!r}", hint="the file may be of another version") from None
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module):
        raise AnalysisError(f"{name!r} is no class of an analysis's values")
    return cls


def encoded(value: Any, arrays: dict[str, np.ndarray] | None) -> Any:
    """A value as JSON. AnalysisError for what has no form there."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.generic):
        return encoded(value.item(), arrays)
    if isinstance(value, int):
        return value if abs(value) <= _SAFE else {"type": "integer", "value": str(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"type": "float", "value": str(value)}
    if isinstance(value, complex):
        return {"type": "complex", "value": [encoded(value.real, None), encoded(value.imag, None)]}
    if isinstance(value, Fraction):
        return {"type": "fraction", "value": str(value)}
    if isinstance(value, np.ndarray):
        return _array(value, arrays)
    if isinstance(value, list):
        return [encoded(v, arrays) for v in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"type": "tuple", "items": [encoded(v, arrays) for v in value]}
    if isinstance(value, (set, frozenset)):
        return {"type": "set", "items": [encoded(v, arrays) for v in sorted(value, key=repr)]}
    if isinstance(value, Mapping):
        return {"type": "mapping", "items": [[encoded(k, arrays), encoded(v, arrays)] for k, v in value.items()]}
    if isinstance(value, BudgetError):
        costs = {n: [encoded(x, None) for x in (c.seconds, c.bytes)] for n, c in
                 (("estimate", value.estimate), ("budget", value.budget))}  # fmt: skip
        return {"type": "refusal", "message": value.message, "hint": value.hint, **costs}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encoded(getattr(value, f.name), arrays) for f in dataclasses.fields(value) if f.init}
        if isinstance(value, Result):
            fields["witness"] = None
        return {"type": "object", "class": _class_name(type(value)), "fields": fields}
    raise AnalysisError(
        f"a {type(value).__name__} has no form in JSON", hint="give numbers, texts, arrays, containers or dataclasses"
    )


def _array(value: np.ndarray, arrays: dict[str, np.ndarray] | None) -> dict[str, Any]:
    about = {"type": "array", "dtype": str(value.dtype), "shape": list(value.shape)}
    if value.dtype.kind in "biufc" and arrays is not None:
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {**about, "name": name}
    return {**about, "data": [encoded(v, None) for v in value.reshape(-1).tolist()]}


def decoded(value: Any, arrays: Mapping[str, np.ndarray] | None) -> Any:
    """The value that `encoded` made JSON of. AnalysisError, KeyError, TypeError or ValueError for anything else."""
    if isinstance(value, list):
        return [decoded(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    kind = value["type"]
    if kind in ("integer", "float", "fraction"):
        return {"integer": int, "float": float, "fraction": Fraction}[kind](value["value"])
    if kind == "complex":
        return complex(*(decoded(v, None) for v in value["value"]))
    if kind in ("tuple", "set"):
        items = [decoded(v, arrays) for v in value["items"]]
        return tuple(items) if kind == "tuple" else frozenset(items)
    if kind == "mapping":
        return {decoded(k, arrays): decoded(v, arrays) for k, v in value["items"]}
    if kind == "array":
        if "name" in value:
            return (arrays or {})[value["name"]]
        data = [decoded(v, None) for v in value["data"]]
        made = np.empty(len(data), dtype=np.dtype(value["dtype"]))
        made[:] = data
        return made.reshape(value["shape"])
    if kind == "refusal":
        estimate, budget = (Cost(*(decoded(x, None) for x in value[n])) for n in ("estimate", "budget"))
        return BudgetError(value["message"], estimate=estimate, budget=budget, hint=value["hint"])
    if kind == "object":
        return _class_named(value["class"])(**{n: decoded(v, arrays) for n, v in value["fields"].items()})
    raise AnalysisError(f"there is no type {kind!r} in what an analysis writes")


def to_lines(findings: Iterable[Finding]) -> str:
    """A line of JSON for every finding."""
    return "\n".join(json.dumps(row_of(f), allow_nan=False) for f in findings)


def from_lines(text: str) -> tuple[Finding, ...]:
    """The findings of `to_lines`. AnalysisError for any other text."""
    try:
        return tuple(finding_of(json.loads(line)) for line in text.splitlines() if line.strip())
    except json.JSONDecodeError as cause:
        raise AnalysisError(f"this is no JSON: {cause}") from cause


def save(findings: Iterable[Finding], path: str | Path) -> None:
    """Writes an npz file: "findings", the rows as JSON text in UTF-8, and the arrays that they name."""
    arrays: dict[str, np.ndarray] = {}
    rows = [row_of(f, arrays) for f in findings]
    text = np.frombuffer(json.dumps(rows, allow_nan=False).encode(), dtype=np.uint8)
    with Path(path).open("wb") as file:
        np.savez_compressed(file, findings=text, **arrays)  # type: ignore[arg-type]


def load(path: str | Path) -> tuple[Finding, ...]:
    """The findings of a file that `save` wrote, without witnesses. AnalysisError for any other file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "findings"}
            rows = json.loads(file["findings"].tobytes().decode())
    except (KeyError, ValueError, OSError) as cause:
        if isinstance(cause, FileNotFoundError):
            raise
        raise AnalysisError(f"{path} is no file of findings: {cause}") from cause
    return tuple(finding_of(row, arrays) for row in rows)


def to_dataframe(findings: Iterable[Finding]) -> Any:
    """A pandas DataFrame, a row a finding: where it belongs, ``value`` as it is, ``number`` (NaN where the value is no
    one number), unit, proof level, tolerance, residual, assumptions, and the sentence. AnalysisError without pandas."""
    try:
        import pandas
    except ImportError:
        raise AnalysisError("data frames need pandas", hint='pip install "aatc[report]"') from None
    rows = [_flat(f) for f in findings]
    return pandas.DataFrame(rows, columns=list(_COLUMNS))


_COLUMNS = (
    "attention", "batch", "head", "family", "item", "value", "number", "unit", "proof_level", "tolerance", "residual",
    "assumptions", "says", "licenses",
)  # fmt: skip


def level_of(r: Any) -> str:
    """The proof level of a result, "undecided", or "refused"."""
    return r.proof_level if isinstance(r, Result) else "undecided" if isinstance(r, Undecided) else "refused"


def _flat(f: Finding) -> dict[str, Any]:
    item, r = item_of(f.item), f.result
    value = r.value if isinstance(r, Result) else r
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, complex)
    return {
        "attention": f.subject, "batch": f.batch, "head": f.head, "family": f.family, "item": f.item, "value": value,
        "number": float(value) if real else math.nan, "unit": item.unit,
        "proof_level": level_of(r),
        "tolerance": r.tolerance if isinstance(r, Result) else math.nan,
        "residual": r.residual if isinstance(r, Result) else math.nan,
        "assumptions": "; ".join(r.assumptions) if isinstance(r, Result) else "",
        "says": item.says, "licenses": item.licenses,
    }  # fmt: skip
