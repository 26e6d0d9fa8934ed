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
import zipfile
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from aatc.analysis.items import item_of
from aatc.ir.errors import AatcError
from aatc.passes.analysis.base import Finding
from aatc.passes.analysis.result import UNFIT, AnalysisError, BudgetError, Cost, Result, Undecided

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


def finding_of(row: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None, where: str = "") -> Finding:
    """The finding that a row says, its witness left out. AnalysisError, which says ``where``, for what is no such
    row."""
    try:
        value = decoded(row["value"], arrays)
        if "proof_level" in row:
            own = row.get("result", {"class": _class_name(Result), "fields": {}})
            cls = _class_named(own["class"])
            given = {n: decoded(v, arrays) for n, v in own["fields"].items()}
            if not issubclass(cls, Result):
                raise AnalysisError(f"{own['class']} is no class of results")
            numbers = [_typed(decoded(row[n], arrays), float, int) for n in ("tolerance", "residual")]
            notes = tuple(_typed(note, str) for note in _typed(row["assumptions"], list))
            value = cls(value, _typed(row["proof_level"], str), *numbers, None, notes, **given)
        attention, family, item = (_typed(row[n], str) for n in ("attention", "family", "item"))
        return Finding(attention, family, item, value, *(_typed(row[n], int) for n in ("head", "batch")))
    except (AatcError, MemoryError, *UNFIT) as cause:
        said = cause.message if isinstance(cause, AatcError) else repr(cause)
        hint = cause.hint if isinstance(cause, AatcError) else None
        raise AnalysisError(
            f"this is no row of an analysis: {said}",
            where=where or None,
            hint=hint or "only what aatc wrote is read: it is damaged, changed, or of another version: save again",
        ) from cause


def _typed(value: Any, *types: type) -> Any:
    if type(value) not in types:  # True is no number of a head
        raise TypeError(f"{str(value)[:40]!r} is no {types[0].__name__}")
    return value


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
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return encoded(value.item(), arrays)
    if isinstance(value, int):
        return value if abs(value) <= _SAFE else {"type": "integer", "value": _digits(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"type": "float", "value": str(value)}
    if isinstance(value, complex):
        return {"type": "complex", "value": [encoded(value.real, None), encoded(value.imag, None)]}
    if isinstance(value, Fraction):
        return {"type": "fraction", "value": f"{_digits(value.numerator)}/{_digits(value.denominator)}"}
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


def _digits(value: int) -> str:
    """In base 16 where Python converts no such number of decimal digits."""
    return str(value) if value.bit_length() < 10_000 else hex(value)


def _array(value: np.ndarray, arrays: dict[str, np.ndarray] | None) -> dict[str, Any]:
    about = {"type": "array", "dtype": str(value.dtype), "shape": list(value.shape)}
    if value.dtype.kind in "biufc" and arrays is not None:
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {**about, "name": name}
    if value.dtype.kind not in "biufcOU" or value.dtype.char in "gG":
        raise AnalysisError(f"an array of {value.dtype} has no form in JSON", hint="give float64, complex128 or texts")
    return {**about, "data": [encoded(v, None) for v in value.reshape(-1).tolist()]}


def decoded(value: Any, arrays: Mapping[str, np.ndarray] | None) -> Any:
    """The value that `encoded` made JSON of. AnalysisError, or one of `UNFIT`, for anything else."""
    if isinstance(value, list):
        return [decoded(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    kind = value["type"]
    if kind == "float":
        return float(value["value"])
    if kind in ("integer", "fraction"):
        parts = [int(part, 0) for part in value["value"].split("/")]
        if len(parts) != 1 + (kind == "fraction"):
            raise AnalysisError(f"{value['value'][:40]!r} is no {kind}")
        return Fraction(*parts) if kind == "fraction" else parts[0]
    if kind == "complex":
        return complex(*(decoded(v, None) for v in value["value"]))
    if kind in ("tuple", "set"):
        items = [decoded(v, arrays) for v in value["items"]]
        return tuple(items) if kind == "tuple" else frozenset(items)
    if kind == "mapping":
        return {decoded(k, arrays): decoded(v, arrays) for k, v in value["items"]}
    if kind == "array":
        return _array_of(value, arrays or {})
    if kind == "refusal":
        estimate, budget = (Cost(*(decoded(x, None) for x in value[n])) for n in ("estimate", "budget"))
        return BudgetError(value["message"], estimate=estimate, budget=budget, hint=value["hint"])
    if kind == "object":
        return _class_named(value["class"])(**{n: decoded(v, arrays) for n, v in value["fields"].items()})
    raise AnalysisError(f"there is no type {kind!r} in what an analysis writes")


def _array_of(value: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array of a name, if it is of the dtype and shape that the row says, or of numbers that this dtype holds."""
    dtype, shape = np.dtype(value["dtype"]), tuple(value["shape"])
    if dtype.kind not in "biufcOU":
        raise AnalysisError(f"an analysis writes no arrays of {dtype}")
    if "name" in value:
        array = arrays[value["name"]]
        if (array.dtype, array.shape) != (dtype, shape):
            raise AnalysisError(
                f"the array {value['name']!r} of this file is {array.dtype} {array.shape}, the row says {dtype} {shape}"
            )
        return array
    data = [decoded(v, None) for v in value["data"]]
    made = np.empty(len(data), dtype=dtype)
    with np.errstate(over="ignore"):
        for i, number in enumerate(data):
            made[i] = number
    wrong = [x for x, y in zip(data, made.tolist()) if type(x) is not type(y) or (x != y and not (x != x and y != y))]
    if dtype.kind != "O" and wrong:
        raise AnalysisError(f"an array of {dtype} holds no {str(wrong[0])[:40]}")
    return made.reshape(shape)


def to_lines(findings: Iterable[Finding]) -> str:
    """A line of JSON for every finding."""
    return "\n".join(json.dumps(row_of(f), allow_nan=False) for f in findings)


def from_lines(text: str) -> tuple[Finding, ...]:
    """The findings of `to_lines`. AnalysisError, which says in which line, for any other text."""
    lines = [(f"line {n}", line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return tuple(finding_of(_json(line, where), None, where) for where, line in lines)


def _json(text: str, where: str) -> Any:
    """What a text says. AnalysisError for what is no JSON, or nested deeper than anything that is written."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as cause:
        raise AnalysisError(
            f"this is no JSON: {cause}", where=where, hint="it was changed or damaged: write it again"
        ) from cause


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def save(findings: Iterable[Finding], path: str | Path) -> None:
    """Writes an npz file: "findings", the rows as JSON text in UTF-8, and the arrays that they name."""
    arrays: dict[str, np.ndarray] = {}
    rows = [row_of(f, arrays) for f in findings]
    text = np.frombuffer(json.dumps(rows, allow_nan=False).encode(), dtype=np.uint8)
    with Path(path).open("wb") as file:
        np.savez_compressed(file, findings=text, **arrays)  # type: ignore[arg-type]


def load(path: str | Path) -> tuple[Finding, ...]:
    """The findings of a file that `save` wrote, without witnesses. AnalysisError, with the file and where in it, for
    any other file, a damaged one among them; OSError for one that cannot be opened."""
    with Path(path).open("rb") as opened:
        try:
            arrays = _members(opened)
            text = arrays.pop("findings").tobytes().decode()
        except Exception as cause:  # zip, deflate, npy and UTF-8 each raise their own of what is damaged
            raise AnalysisError(
                f"{path} is no file of findings: {type(cause).__name__}: {cause}",
                where=str(path),
                hint="give a file that Analysis.save wrote; if it is one, it is damaged: copy it again, or save again",
            ) from cause
    rows = _json(text, str(path))
    if not isinstance(rows, list):
        raise AnalysisError(
            f"{path} is no file of findings: it holds no list of rows",
            where=str(path),
            hint="give a file that Analysis.save wrote",
        )
    return tuple(finding_of(row, arrays, f"{path}, row {n}") for n, row in enumerate(rows))


def _members(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of an npz file, each held against its checksum."""
    with zipfile.ZipFile(file) as members:
        broken = members.testzip()  # reading an array may end before its checksum is looked at
    if broken is not None:
        raise zipfile.BadZipFile(f"bad CRC-32 of {broken}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as read:
        return {name: read[name] for name in read.files}


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
