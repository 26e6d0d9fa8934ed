"""Small faults to plant one at a time, to see whether the tests notice: data for `tests.planted.run`.

Each is a replacement of one text in one file. ``tests`` are the files that should notice, likeliest first.
"""

from __future__ import annotations

from dataclasses import dataclass

IR = ("tests/ir/test_ir_score.py", "tests/ir/test_ir_interpreter.py", "tests/ir/test_ir_verifier.py")
TEXT = ("tests/ir/test_ir_text.py", "tests/ir/test_ir_score.py")
KERNELS = ("tests/fuzz", "tests/compiler/test_kernels.py")
PASSES = ("tests/compiler/test_passes.py",)
TILES = ("tests/compiler/test_masks_tiles.py", "tests/ir/test_ir_score.py")
BEHAVIOUR = ("tests/ir/test_ir_edges.py", "tests/compiler/test_kernel_edges.py")


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]


FAULTS = (
    # --- ir/score --------------------------------------------------------------------------------------------------
    Fault(
        "cos-sign",
        "ir/score/derivative.py",
        '"cos": lambda e, g: (neg(mul(g, call("sin", e.args[0]))),)',
        '"cos": lambda e, g: (mul(g, call("sin", e.args[0])),)',
        "a sign",
        IR,
    ),
    Fault(
        "tmatvec-outer",
        "ir/score/derivative.py",
        '"tmatvec": lambda e, g: (call("outer", e.args[1], g)',
        '"tmatvec": lambda e, g: (call("outer", g, e.args[1])',
        "a transposed gradient",
        IR,
    ),
    Fault(
        "minimum-ties",
        "ir/score/derivative.py",
        '_pick(e, g, "le")',
        '_pick(e, g, "lt")',
        "ties of minimum",
        BEHAVIOUR + IR + KERNELS,
    ),
    Fault(
        "acosh-below",
        "ir/score/derivative.py",
        'mul(call("step", y), call("rsqrt", call("maximum", y, _TINY)))',
        'call("rsqrt", call("maximum", y, _TINY))',
        "a gradient at coincident points",
        BEHAVIOUR + IR + KERNELS,
    ),
    Fault(
        "less-at-equality",
        "backends/cpu/linear.py",
        '_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"',
        '_MIRRORED = {"lt": "gt", "le": "gt", "gt": "lt", "ge": "lt"',
        "`<=` taken as `<` where a constant stands first",
        BEHAVIOUR + KERNELS,
    ),
    Fault(
        "softplus-tail",
        "backends/cpu/linear.py",
        'self.scale(self("abs", x), -LOG2E)',
        "self.scale(x, -LOG2E)",
        "the tail of softplus",
        BEHAVIOUR + KERNELS,
    ),
    Fault(
        "register-needed",
        "backends/cpu/linear.py",
        "return self.last.get(n, -1) <= made and n not in self.root_of",
        "return n not in self.root_of",
        "a register overwritten while needed",
        BEHAVIOUR + KERNELS,
    ),
    Fault(
        "overwritable-always",
        "backends/cpu/linear.py",
        "return every - later",
        "return every",
        "an operand overwritten before it is read",
        BEHAVIOUR + KERNELS + PASSES,
    ),
    Fault(
        "seed-upper-half",
        "ir/score/random.py",
        "mix((seed >> 32) & _MASK)",
        "mix((seed >> 48) & _MASK)",
        "the upper half of a seed",
        BEHAVIOUR + IR + KERNELS,
    ),
    Fault(
        "lookup-rounds-down",
        "ir/score/evaluate.py",
        "p.double().round().clamp(0, n - 1)",
        "p.double().floor().clamp(0, n - 1)",
        "rounding of lookups",
        BEHAVIOUR + IR + KERNELS,
    ),
    Fault(
        "quotient-edge",
        "ir/score/bounds.py",
        "crosses = (b[0] <= 0) & (b[1] >= 0)\n    return np.where(crosses, -INF",
        "crosses = (b[0] < 0) & (b[1] > 0)\n    return np.where(crosses, -INF",
        "an edge: a denominator that touches 0",
        BEHAVIOUR + IR,
    ),
    Fault(
        "magnitude-crosses",
        "ir/score/bounds.py",
        "np.where(crosses, 0.0, np.minimum(low, high))",
        "np.minimum(low, high)",
        "bounds of an interval around 0",
        IR + PASSES,
    ),
    Fault(
        "ne-bound",
        "ir/score/functions.py",
        "bounds.truth((a[1] < b[0]) | (b[1] < a[0]))",
        "bounds.truth((a[1] <= b[0]) | (b[1] <= a[0]))",
        "`!=` at equality in bounds",
        BEHAVIOUR + IR,
    ),
    Fault(
        "nested-minus",
        "ir/score/text.py",
        "r = right[0] if right[1] > level",
        "r = right[0] if right[1] >= level",
        "a - (b - c) printed as a - b - c",
        TEXT,
    ),
    Fault(
        "sub-of-negation",
        "ir/score/expr.py",
        'if y.fn == "neg":\n        return add(x, y.args[0])',
        'if y.fn == "neg":\n        return sub(x, y.args[0])',
        "x - (-y) folded to x - y",
        IR + KERNELS,
    ),
    # --- ir --------------------------------------------------------------------------------------------------------
    Fault(
        "tile-map-holes",
        "backends/cpu/masks.py",
        "holes or any(partial",
        "any(partial",
        "holes between full tiles",
        BEHAVIOUR + TILES + KERNELS,
    ),
    Fault(
        "nan-bounds",
        "ir/tilemap.py",
        "return (np.where(unknown, 0.0, low), np.where(unknown, 1.0, high)), False",
        "return (low, high), False",
        "NaN bounds",
        BEHAVIOUR + IR + TILES,
    ),
    Fault(
        "index-edge",
        "ir/tilemap.py",
        "high = np.minimum(low + block, sizes[axis]) - 1",
        "high = np.minimum(low + block, sizes[axis]) - 2",
        "the last index of a block",
        IR + BEHAVIOUR + PASSES,
    ),
    Fault(
        "bad-keys-beyond-256",
        "ir/containment.py",
        "starts=(0, 0, i, 0)",
        "starts=(0, 0, 0, 0)",
        "keys that are not finite beyond row 256",
        BEHAVIOUR + KERNELS,
    ),
    Fault(
        "hoist-over-stores",
        "ir/specialize.py",
        "x.operands[0] not in written and not any",
        "not any",
        "loads hoisted over stores",
        BEHAVIOUR + KERNELS,
    ),
    Fault(
        "no-pruning",
        "ir/specialize.py",
        "ret.operands = [v for v, k in zip(ret.operands, keep, strict=True) if k]\n    prune(func)",
        "ret.operands = [v for v, k in zip(ret.operands, keep, strict=True) if k]",
        "unneeded gradients are computed all the same",
        BEHAVIOUR + KERNELS,
    ),
    Fault(
        "dimension-ranges",
        "ir/interpreter.py",
        "if value < low or (high is not None and value > high):",
        "if value < low:",
        "ranges of dimensions at run time",
        BEHAVIOUR + IR,
    ),
    Fault(
        "region-types",
        "ir/tile.py",
        "if [a.type for a in body.args] != [*lead, *carried]:",
        "if len(body.args) != len(lead) + len(carried):",
        "types of region arguments",
        BEHAVIOUR + IR,
    ),
    Fault(
        "plan-in-loops",
        "backends/cpu/verify_plan.py",
        "self.block(region, [*outside, *kept], slots)",
        "self.block(region, outside, slots)",
        "plan checks inside loops",
        BEHAVIOUR + IR,
    ),
    Fault(
        "plan-of-scratch",
        "backends/cpu/verify_plan.py",
        "for other in taken:\n                if place.overlaps(other):",
        "for other in taken[:0]:\n                if place.overlaps(other):",
        "a check that always holds: temporaries over live tiles",
        BEHAVIOUR + IR,
    ),
    Fault(
        "dim-bounds",
        "ir/dims.py",
        "low, high = low + c * hi, high + c * lo",
        "low, high = low + c * lo, high + c * hi",
        "bounds of a negative coefficient",
        BEHAVIOUR + IR,
    ),
    # --- passes ----------------------------------------------------------------------------------------------------
    Fault(
        "causal-or",
        "passes/simplify_score.py",
        'if x.fn == "and":',
        'if x.fn in ("and", "or"):',
        "'causal or another' taken as causal",
        BEHAVIOUR + KERNELS + PASSES,
    ),
    Fault(
        "bound-scale",
        "passes/score_bounds.py",
        "return None if inner is None else abs(float(v.args[0].value)) * inner",
        "return inner",
        "a static bound that ignores a scale",
        BEHAVIOUR + KERNELS + PASSES,
    ),
    Fault(
        "fold-type",
        "passes/cleanup.py",
        "return value if TensorType.of(dtype_name(value.dtype), value.shape) == op.result.type else None",
        "return value",
        "folding that changes a type",
        BEHAVIOUR + PASSES + ("tests/frontend/test_import_graph.py",),
    ),
    Fault(
        "library-factor",
        "backends/cpu/library.py",
        "or terms.separable or terms.others or terms.row",
        "or terms.separable or terms.row",
        "a library form of a score that is more than a contraction",
        BEHAVIOUR + KERNELS + PASSES,
    ),
    Fault(
        "causal-offset",
        "passes/simplify_score.py",
        '(x.fn == "lt" and x.args == (j, i))',
        '(x.fn in ("lt", "ne") and x.args == (j, i))',
        "j != i taken as causal",
        BEHAVIOUR + KERNELS + PASSES,
    ),
    Fault(
        "plan-loop-lives",
        "backends/cpu/plan_memory.py",
        "if self.intervals[v].end > max(before[v], start):",
        "if False:",
        "what a loop reads is given away inside it",
        PASSES + KERNELS,
    ),
    Fault(
        "guard-dropped",
        "passes/tile_forward.py",
        "if forms.floor > -80:",
        "if forms.floor > -1e300 or True:",
        "no guard where rows underflow",
        BEHAVIOUR + KERNELS,
    ),
    Fault(
        "lse-gradient",
        "passes/tile_backward.py",
        'sub(gl, call("dot", pulled, o))',
        'neg(call("dot", pulled, o))',
        "a dropped gradient term",
        KERNELS,
    ),
    Fault(
        "certificate-nan",
        "passes/certificate.py",
        "if not residual <= tolerance:",
        "if residual > tolerance and residual < 1e9:",
        "a check that holds for what is infinitely wrong",
        BEHAVIOUR + PASSES,
    ),
    Fault(
        "conditions",
        "passes/base.py",
        "if not check(module):",
        "if False:",
        "a check that always holds: the order of passes",
        PASSES,
    ),
    # --- backends ---------------------------------------------------------------------------------------------------
    Fault(
        "guard-all-rows",
        "backends/cpu/runtime.py",
        "bool(x.amin() >= least)",
        "bool(x.amax() >= least)",
        "guards when some rows underflow",
        BEHAVIOUR + KERNELS,
    ),
    Fault(
        "kernel-lookup-down",
        "backends/cpu/runtime.py",
        'at = heads // h if c == "b" else heads % h\n            index',
        'at = heads // h if c == "h" else heads % h\n            index',
        "which batch and head of a table is read",
        BEHAVIOUR + KERNELS,
    ),
    Fault(
        "shared-heads",
        "backends/cpu/runtime.py",
        "value.unflatten(1, (heads, h // heads)).sum(2)",
        "value.unflatten(1, (h // heads, heads)).sum(1)",
        "which query heads share a key head",
        KERNELS,
    ),
    Fault(
        "scatter-once",
        "backends/cpu/runtime.py",
        "accumulate=True",
        "accumulate=False",
        "repeated entries of a table",
        KERNELS,
    ),
    Fault(
        "toeplitz-numbers",
        "backends/cpu/masks.py",
        'and (e.dtype == "i" or not any(args))',
        "",
        "i + 0.1 counted as an integer",
        BEHAVIOUR + TILES + KERNELS,
    ),
    Fault(
        "wrong-backward",
        "backends/cpu/kernel.py",
        "found = self._backwards.get(needed)",
        "found = next(iter(self._backwards.values()), None)",
        "a backward compiled for other gradients",
        BEHAVIOUR + KERNELS,
    ),
    # --- aatc --------------------------------------------------------------------------------------------------------
    Fault(
        "kv-lengths",
        "aatc/attend.py",
        "if not same(k.shape[1], v.shape[1]) or not same(k.shape[2], v.shape[2]):",
        "if not same(k.shape[1], v.shape[1]):",
        "keys and values of different lengths",
        ("tests/api/test_attend.py", *BEHAVIOUR),
    ),
    Fault(
        "capture-sizes",
        "aatc/attend.py",
        "if axis in INDEX_AXES and not same(n, sizes[INDEX_AXES.index(axis)]):",
        'if axis in "ij" and not same(n, sizes[INDEX_AXES.index(axis)]):',
        "a check that holds for batches and heads",
        ("tests/api/test_attend.py", "tests/api/test_masks_and_biases.py", *BEHAVIOUR),
    ),
    Fault(
        "rotary-axes",
        "aatc/connections.py",
        "** (-steps / share)",
        "** (-steps / pairs)",
        "frequencies of several axes",
        ("tests/fuzz", "tests/api/test_connections.py"),
    ),
    Fault(
        "squeeze-order",
        "aatc/parts.py",
        "for d in reversed(dropped):",
        "for d in dropped:",
        "which dimension of size 1 is dropped",
        ("tests/fuzz", "tests/api/test_masks_and_biases.py"),
    ),
)
