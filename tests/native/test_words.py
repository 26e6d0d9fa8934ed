"""Element-wise words in native code against torch: every value and special value, on several processors."""

import functools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.backends.native import words
from aatc.backends.native.isa import TABLE, Isa, available, host
from aatc.backends.native.llvm import Code, Module, Val, number
from aatc.errors import BackendError
from aatc.ir.score.expr import Expr, add, call, const, mul, param, params, postorder
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.random import pair_numbers
from tests.native import compiled_words

X, Y, C = param("x", ""), param("y", ""), param("c", "", "b")
K, L = param("k", "", "i"), param("l", "", "i")
LANES = (1, 8, 16)
ISAS = {isa.name: isa for isa in available()}

#: Errors in units in the last place of float and double that words may have. Of float: the largest measured over
#: every 401st of all floats and six million more where functions bend, on all instruction sets, rounded up (2.8 of
#: log2 without fused multiply-adds is the worst of those with one polynomial; 2.1 with them). Of double: against torch,
#: which itself errs by one such unit. A word that is not here is exact: half a unit.
ULPS = {
    "rsqrt": (1.5, 2), "exp": (1.2, 1), "exp2": (1.6, 1), "log": (1.3, 2), "log2": (2.8, 2), "log1p": (1.4, 1),
    "sin": (2, 1), "cos": (1.9, 1), "tanh": (1.6, 2), "sigmoid": (2.3, 2), "softplus": (1.9, 2), "acosh": (2.7, 1),
    "expacosh": (2.2, 3), "asinsqrt": (2.5, 2), "acos": (2.7, 1), "pow": (3, 2), "power": (0.6, 1),
}  # fmt: skip
POWERS = (1.7, -0.3, 0.5, -0.5, 2.0, 3.0, -1.0, -2.0, 4.0, 5.0, 0.0, 1 / 3, 7.0)


def float_bodies() -> dict[str, Expr]:
    found = {}
    for name, f in FUNCTIONS.items():
        if f.kind != "pointwise" or f.spelled is not None or name in ("and", "or", "not", "where", "pair_uniform"):
            continue
        if name == "pow":
            found |= {f"pow_{n}": call(name, X, attrs=(p,)) for n, p in enumerate(POWERS)}
        else:
            found[name] = call(name, *(X, Y)[: f.arity])
    return found


def whole_bodies() -> dict[str, Expr]:
    found = {f"whole_{n}": call(n, K) for n in ("neg", "abs", "sign", "square", "floor")}
    found |= {f"whole_{n}": call(n, K, L) for n in ("add", "sub", "mul", "maximum", "minimum")}
    found |= {f"whole_{n}": call(n, K, L) for n in ("lt", "le", "gt", "ge", "eq", "ne")}
    for d in (1, -1, 2, 7, -7, 49, 2**40, -(2**63)):
        found |= {f"whole_{n}_{d % 2**64}": call(n, K, const(d)) for n in ("floordiv", "remainder")}
    return found


def mixed_bodies() -> dict[str, Expr]:
    return {
        "where": call("where", C, X, Y),
        "where_mixed": call("where", C, X, K),
        "where_whole": call("where", C, K, L),
        "logic": call("or", call("and", C, call("not", call("lt", X, Y))), call("eq", C, call("ge", K, L))),
        "sum_mixed": add(mul(const(2), K), X),
        "less_mixed": call("lt", K, X),
        "div_whole": call("div", K, L),
        "floordiv_unknown": call("floordiv", K, L),
        "remainder_unknown": call("remainder", K, L),
        "sqrt_whole": call("sqrt", K),
        "step_whole": call("step", K),
        "pair_uniform": call("pair_uniform", K, L),
        "constant": add(call("exp", const(1.0)), mul(const(0.0), X)),
    }


BODIES = {**float_bodies(), **whole_bodies(), **mixed_bodies()}


def bodies(kind: str) -> dict[str, Expr]:
    """Those whose code depends on the kind of number, where that is double."""
    return {n: b for n, b in BODIES.items() if kind == "float" or not n.startswith("whole_")}


@functools.cache
def program(processor: str, lanes: int, kind: str) -> compiled_words.Program:
    isa = ISAS[processor]
    module = compiled_words.module_for(isa)
    for body_name, body in bodies(kind).items():
        compiled_words.enter(module, f"{body_name}_{kind}", body, kind, lanes)
    return compiled_words.Program(module, isa)


@functools.cache
def floats(kind: str) -> np.ndarray:
    """Every magnitude, dense where functions change their form, and what is special."""
    rng = np.random.default_rng(0)
    scalar = compiled_words.SCALARS[kind]
    unsigned = np.uint32 if kind == "float" else np.uint64
    limits = np.finfo(scalar)
    special = [0.0, math.inf, math.nan, limits.max, limits.tiny, limits.smallest_subnormal, 0.25, 1.5, 2.0**24, 20.0]
    special += [
        math.nextafter(limits.tiny, 0),
        1e-40,
        1e-310,
        126,
        127,
        128,
        149,
        150,
        151,
        1022,
        1023,
        1024,
        1074,
        1075,
    ]
    special += [np.nextafter(scalar(v), scalar(w)) for v in (1, 0.5, 2, 126, 128, 149, 150) for w in (0, 1e9)]
    special += [k * math.pi / 2 for k in range(1, 9)] + [k / 2 for k in range(16)]
    special += [88.7, 88.8, 87.3, 103.9, 104.0, 709.7, 709.8, 745.1, 745.2]
    with np.errstate(all="ignore"):
        special = np.array(special).astype(scalar)
        parts = [
            special,
            -special,
            rng.integers(0, np.iinfo(unsigned).max, 6000, dtype=unsigned).view(scalar),
            rng.standard_normal(3000) * 10 ** rng.uniform(-6, 3, 3000),
            rng.uniform(-150, 150, 3000),
            1 + rng.standard_normal(2000) * 10 ** rng.uniform(-7.5, 0, 2000),
            rng.uniform(-1.1, 1.1, 2000),
        ]
        out = np.concatenate([part.astype(scalar) for part in parts])
    return out[: len(out) // 16 * 16]


def wholes() -> np.ndarray:
    rng = np.random.default_rng(1)
    special = [0, 1, -1, 2, -2, 7, -7, 49, 2**62, 2**63 - 1, -(2**63), 2**53 + 1, 2**24 + 1, 2**32]
    return np.concatenate([rng.integers(-(2**63), 2**63 - 1, 1000), rng.integers(-200, 200, 2000), special])[: 188 * 16]


def arrays(body: Expr, kind: str) -> list[np.ndarray]:
    """Values for a body's parameters, of one length, a multiple of 16; of two, some are equal."""
    rng = np.random.default_rng(2)
    pools = [{"f": floats(kind), "i": wholes(), "b": np.array([True, False])}[p.dtype] for p in params(body)]
    if len(pools) == 1:
        return pools
    out = [rng.choice(pool, 16 * 1000) for pool in pools]
    if out[0].dtype == out[1].dtype:
        out[1][::17] = out[0][::17]
    return out


#: Words that are better here than torch's own in double precision, from more digits than it has.
EXACT = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "expacosh": lambda x: 1 / (np.maximum(x, 1) + np.sqrt((np.maximum(x, 1) - 1) * (np.maximum(x, 1) + 1))),
    "asinsqrt": lambda x: np.arctan2(np.sqrt(np.clip(x, 0, 1)), np.sqrt(1 - np.clip(x, 0, 1))),
}


def _divided(word: str, x: np.ndarray, y: np.ndarray) -> torch.Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.asarray((np.floor_divide if word == "floordiv" else np.remainder)(x, y)))


def reference(body: Expr, values: list[np.ndarray], kind: str) -> np.ndarray:
    """What torch makes of a body: numbers in double precision. The words that jump are held to the dtype itself, and by
    numpy: torch's vectors lose the remainder of numbers far apart."""
    done = {p: torch.from_numpy(v.copy()) for p, v in zip(params(body), values, strict=True)}
    done = {p: v.double() if p.dtype == "f" else v for p, v in done.items()}
    for e in postorder(body):
        if e in done:
            continue
        if e.is_const:
            done[e] = torch.tensor(e.value, dtype={"f": torch.float64, "i": torch.int64, "b": torch.bool}[e.dtype])
            continue
        args = [done[a] for a in e.args]
        if e.fn in EXACT or (e.fn == "pow" and e.attrs == (-2.0,)):
            with np.errstate(all="ignore"):
                exact = EXACT.get(e.fn, lambda x: x**-2)(args[0].numpy().astype(np.longdouble))
                done[e] = torch.from_numpy(np.asarray(exact, np.float64))
            if e.fn == "sigmoid":  # which is 0 where exp(-x) is infinite
                infinite = torch.exp(-args[0].to(torch.float32 if kind == "float" else torch.float64)).isinf()
                done[e] = torch.where(infinite, 0.0, done[e])
            continue
        if e.fn in ("floordiv", "remainder") and e.dtype == "f":
            scalar = compiled_words.SCALARS[kind]
            done[e] = _divided(e.fn, *(a.numpy().astype(scalar) for a in args))
            continue
        if e.dtype == "f" and e.fn != "pair_uniform":
            number_type = torch.float32 if kind == "float" else torch.float64
            args = [a.to(number_type).double() if a.dtype == torch.int64 else a for a in args]
        done[e] = pair_numbers(*args) if e.fn == "pair_uniform" else FUNCTIONS[e.fn].evaluate(*args, *e.attrs)
    return done[body].expand(len(values[0])).numpy()


def ulps(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units in the last place of what is exact; infinite where only one is a NaN or infinite."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(found.dtype)
        same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
        unit = np.spacing(np.minimum(np.abs(rounded), np.finfo(found.dtype).max)).astype(np.float64)
        apart = np.abs(found.astype(np.float64) - exact) / unit
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


#: Doubles only where their code differs from that of other lanes and instruction sets.
CASES = [(name, lanes, "float") for name in ISAS for lanes in LANES]
CASES += [(name, lanes, "double") for name in ISAS for lanes in ((1, 8) if name in ("avx512", "sse") else (8,))]


@pytest.mark.parametrize(("processor", "lanes", "kind"), CASES)
def test_words_have_torchs_values(processor: str, lanes: int, kind: str) -> None:
    built = program(processor, lanes, kind)
    worst = {}
    for name, body in bodies(kind).items():
        values = arrays(body, kind)
        result = compiled_words.type_of(body, kind)
        found, exact = built(f"{name}_{kind}", result, values), expected(name, kind)
        if result in ("i64", "i1"):
            np.testing.assert_array_equal(found, exact, err_msg=name)
            continue
        apart = ulps(found, exact)
        allowed = ULPS.get(body.fn, (0.5, 1))[kind == "double"]
        zeros = (found == 0) & (exact == 0)
        if body.fn not in ("maximum", "minimum", "remainder", "floordiv"):  # of these torch itself gives either zero
            apart[zeros & (np.signbit(found) != np.signbit(exact))] = math.inf
        if not apart.max() <= allowed:
            n = int(np.argmax(apart))
            worst[name] = f"{apart[n]:.2f} at {[v[n] for v in values]}: {found[n]}, not {exact[n]}"
    assert not worst


@functools.cache
def expected(name: str, kind: str) -> np.ndarray:
    return reference(BODIES[name], arrays(BODIES[name], kind), kind)


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("lanes", [2, 3, 4, 6, 32, 48])
def test_other_numbers_of_lanes(lanes: int, kind: str) -> None:
    """Less than a vector, several, and what is no whole number of them."""
    words_of_both_forms = ("exp2", "exp", "log2", "log", "sigmoid", "sin", "acosh")
    module = compiled_words.module_for(host())
    for name in words_of_both_forms:
        compiled_words.enter(module, f"of_{name}", BODIES[name], kind, lanes)
    built = compiled_words.Program(module, host())
    values = floats(kind)[: len(floats(kind)) // 96 * 96]
    for name in words_of_both_forms:
        exact = reference(BODIES[name], [values], kind)
        allowed = ULPS[name][kind == "double"]
        assert ulps(built(f"of_{name}", kind, [values]), exact).max() <= allowed, name


@pytest.mark.parametrize("isa", TABLE.values(), ids=TABLE)
def test_words_of_floats_are_vector_code(isa: Isa) -> None:
    """No calls but of large angles, of the remainder, and to round down where that is no instruction."""
    lanes = isa.lanes()
    module = compiled_words.module_for(isa)
    for name, body in float_bodies().items():
        compiled_words.enter(module, name, body, "float", lanes)
    text = compiled_words.assembly(module, isa)
    calls = set(re.findall(r"^\s+(?:callq?|bl)\s+([a-z]\w*)", text, re.MULTILINE))
    calls |= set(re.findall(r"movabsq\s+\$([a-z]\w+),", text))  # called through a register
    assert calls <= {"sinf", "cosf", "fmodf"} | ({"floor", "floorf"} if isa.name == "sse" else set())
    if isa.name == "avx512":
        exp2 = text[text.index("\nexp2:") : text.index("\nlog2:")]
        assert "vscalefps" in exp2 and "vdivps" not in exp2


def test_every_element_wise_word_is_lowered() -> None:
    words.check()
    with pytest.raises(BackendError, match="acosh, sqrt"):
        words.check({n: f for n, f in words.WORDS.items() if n not in ("acosh", "sqrt")})


def _code() -> Code:
    return Code(Module(), "f", [("x", "<8 x float>"), ("s", "float"), ("n", "i64")])


def test_scalars_and_vectors_meet() -> None:
    code = _code()
    x, s, n = code.args
    assert words.word(code, call("add", X, Y), [x, s], "float").type == "<8 x float>"
    assert words.word(code, call("add", X, K), [s, n], "float").type == "float"
    assert words.word(code, call("lt", K, X), [n, x], "float").type == "<8 x i1>"
    assert words.word(code, call("where", call("lt", K, X), Y, X), [Val("true", "i1"), s, x], "float").lanes == 8
    assert words.expression(code, const(2.5), {}, "double") == number(2.5, "double")


def test_a_shared_node_is_computed_once() -> None:
    code = _code()
    root = call("sqrt", X)
    words.expression(code, mul(add(root, const(1.0)), root), {X: code.args[0]}, "float")
    assert sum("@llvm.sqrt" in line for line in code.lines) == 1


def test_nodes_that_are_ready_hide_what_is_below_them() -> None:
    code = _code()
    q, k = param("q", "bhid"), param("k", "bhjd")
    dot = call("dot", q, k)
    assert words.expression(code, add(dot, const(1.0)), {dot: code.args[0]}, "float").type == "<8 x float>"
    with pytest.raises(BackendError, match="element-wise dot"):
        words.expression(code, dot, {q: code.args[0], k: code.args[0]}, "float")
    with pytest.raises(BackendError, match="element-wise param"):
        words.expression(code, X, {}, "float")


def test_words_spelled_in_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from aatc.ir.score.functions import Function

    soft = Function("soft_step", 1, "pointwise", "", spelled=lambda x: call("div", x, add(const(1.0), call("abs", x))))
    monkeypatch.setitem(FUNCTIONS, "soft_step", soft)
    module = compiled_words.module_for(host())
    compiled_words.enter(module, "f", call("soft_step", X), "double", 8)
    values = np.linspace(-3, 3, 16)
    found = compiled_words.Program(module, host())("f", "double", [values])
    np.testing.assert_allclose(found, values / (1 + np.abs(values)), rtol=1e-15)
    words.check()  # needs no lowering of its own


def test_half_precision_is_widened() -> None:
    code = _code()
    assert words.convert(code, Val("%h", "<8 x bfloat>"), "float").type == "<8 x float>"
    assert "fpext <8 x bfloat>" in code.lines[-1]


def test_integers_have_64_bits() -> None:
    with pytest.raises(BackendError, match="64 bits"):
        words.expression(_code(), const(2**63), {}, "float")
    with pytest.raises(BackendError, match="no truth value"):
        words.convert(_code(), Val("%n", "i64"), "i1")


@given(st.data())
def test_drawn_expressions(data: st.DataObject) -> None:
    """Compositions of words that have no poles, in double precision."""
    leaves = [X, Y, K, const(0.75), const(-2)]
    unary = ("neg", "abs", "tanh", "sigmoid", "sqrt", "softplus", "asinsqrt", "sign", "relu", "expacosh", "sin")
    body = X
    pool = list(leaves)
    for _ in range(data.draw(st.integers(1, 6))):
        a, b = data.draw(st.sampled_from(pool)), data.draw(st.sampled_from(pool))
        fn = data.draw(st.sampled_from((*unary, "add", "mul", "sub", "maximum", "minimum", "where")))
        if fn == "where":
            body = call("where", call("lt", a, b), b, a)
        else:
            body = call(fn, *(a, b)[: FUNCTIONS[fn].arity])
        pool.append(body)
    if not params(body) or body.dtype != "f":
        return
    rng = np.random.default_rng(0)
    values = [rng.integers(-3, 4, 16) if p.dtype == "i" else rng.uniform(-2, 2, 16) for p in params(body)]
    module = compiled_words.module_for(host())
    compiled_words.enter(module, "f", body, "double", 8)
    found = compiled_words.Program(module, host())("f", "double", values)
    np.testing.assert_allclose(found, reference(body, values, "double"), rtol=1e-12, atol=1e-12)
