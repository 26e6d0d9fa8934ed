"""Tile functions as loops over numbers, in C or GLSL: what the two throwaway emitters of this folder share.

Every tile is an array of its type's extents; loops run over the extents of the round, which are expressions.
Nothing here knows what attention is: whatever an emitter needs must stand in the tile program.
"""

from __future__ import annotations

from aatc.ir.access import access, repeats
from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.dims import Dim, factors
from aatc.ir.score.expr import postorder
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.types import RunsType, TensorType, TileType
from tests.neutral.scalar_pairs import Pairs


class Scalar(Pairs):
    """Lines of code for one tile function; a dialect gives spellings (`types`, `words`) and buffers."""

    types: dict[str, str]
    words: dict[str, str]

    def __init__(self, func: Func):
        self.func, self.lines, self.depth, self.count = func, [], 1, 0
        self.names: dict[Value, str] = {}
        self.extent: dict[Value, tuple[str, str, str]] = {}  # of a tile, in this round
        self.at: dict[Value, str] = {}  # extent of a loop's round, by its position
        self.carriers = {op.regions[0].ops[-1]: op for op in func.body.walk() if op.regions}

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def open(self, text: str) -> None:
        self.line(text + " {")
        self.depth += 1

    def close(self) -> None:
        self.depth -= 1
        self.line("}")

    def fresh(self, hint: str) -> str:
        self.count += 1
        return f"{hint}_{self.count}"

    def name(self, v: Value) -> str:
        if v not in self.names:
            self.names[v] = self.fresh("".join(c if c.isalnum() else "_" for c in v.name or "v"))
        return self.names[v]

    def dim(self, d: Dim | int) -> str:
        d = Dim.of(d)
        return " + ".join([str(d.const), *(f"{c} * {self.symbol(n)}" for n, c in d.terms)])

    def symbol(self, name: str) -> str:
        return f"({' * '.join(f'dim_{p}' for p in factors(name))})"

    def element(self, buffer: Value, index: list[str]) -> str:
        """The element of a buffer at an index: by strides, or [problem][panel][feature][token in the panel]."""
        n = buffer.type.panel
        if not n:
            offset = " + ".join([f"({x}) * {self.stride(buffer, a)}" for a, x in enumerate(index)] or ["0"])
        else:
            (g, t, d), features = index, self.extent_of(buffer, 2)
            panels = f"(({self.extent_of(buffer, 1)} + {n - 1}) / {n})"
            offset = f"((({g}) * {panels} + ({t}) / {n}) * {features} + {d}) * {n} + ({t}) % {n}"
        return f"{self.name(buffer)}[{offset}]"

    # --- what a dialect says -------------------------------------------------------------------------------
    def stride(self, buffer: Value, axis: int) -> str:
        raise NotImplementedError

    def extent_of(self, buffer: Value, axis: int) -> str:
        raise NotImplementedError

    def refuse(self) -> None:
        raise NotImplementedError

    def make(self, buffer: Value, fill: float | None) -> None:
        """A new buffer, every element ``fill`` unless that is None."""
        raise NotImplementedError

    def tile_alloc(self, op: Op) -> None:
        self.make(op.result, op.attrs.get("fill"))

    def tile_classify(self, op: Op) -> None:
        """The runs of columns are an argument: whoever calls the kernel classifies the mask."""

    # --- tiles ---------------------------------------------------------------------------------------------
    def declare(self, v: Value, extents: tuple[str, str, str]) -> str:
        t: TileType = v.type
        self.extent[v] = tuple("1" if int(d) == 1 else e for d, e in zip(t.shape, extents, strict=True))
        size = 1
        for d in t.shape:
            size *= int(d)
        self.line(f"{self.types[t.dtype]} {self.name(v)}[{size}];")
        return self.name(v)

    def item(self, v: Value, index: tuple[str, str, str]) -> str:
        """The element of a tile at an index; broadcast along axes of extent 1."""
        t: TileType = v.type
        g, i, j = ("0" if int(d) == 1 else x for d, x in zip(t.shape, index, strict=True))
        return f"{self.name(v)}[(({g}) * {int(t.shape[1])} + {i}) * {int(t.shape[2])} + {j}]"

    def each(self, extents: tuple[str, str, str]) -> tuple[str, str, str]:
        """Opens a loop per axis; returns their counters."""
        index = tuple(self.fresh(c) for c in "gij")
        for x, n in zip(index, extents, strict=True):
            self.open(f"for ({self.types['index']} {x} = 0; {x} < {n}; ++{x})")
        return index

    def done(self) -> None:
        for _ in range(3):
            self.close()

    def copy(self, to: Value, source: Value) -> None:
        x = self.each(self.extent[source])
        self.line(f"{self.item(to, x)} = {self.item(source, x)};")
        self.done()

    # --- programs ------------------------------------------------------------------------------------------
    def expression(self, program, operands: list[Value], index, dtype: str) -> str:
        done = {p: f"{self.item(v, index)}" for p, v in zip(program.params, operands, strict=True)}
        self.enter_words(program.body, done, dtype)
        return done[program.body]

    def enter_words(self, body, done, dtype: str) -> None:
        for e in postorder(body):
            if e in done:
                continue
            if e.is_const:
                done[e] = self.number(e.value, e.dtype, dtype)
                continue
            if FUNCTIONS[e.fn].spelled is not None:
                other = FUNCTIONS[e.fn].spelled(*e.args)
                self.enter_words(other, done, dtype)
                done[e] = done[other]
                continue
            args = [f"{self.types[dtype]}({done[a]})" if a.dtype == "i" and e.dtype != "i" else done[a] for a in e.args]
            name = self.fresh("x")
            kind = {"f": self.types[dtype], "i": self.types["i64"], "b": self.types["bool"]}[e.dtype]
            self.line(f"{kind} {name} = {self.words[e.fn].format(*args)};")
            done[e] = name

    def number(self, value, kind: str, dtype: str) -> str:
        if kind == "b":
            return self.types["true" if value else "false"]
        if kind == "i":
            return str(int(value))
        if value in (float("inf"), float("-inf")):
            return self.types["inf"] if value > 0 else f"(-{self.types['inf']})"
        return f"{self.types[dtype]}({float(value)!r})"

    # --- whole buffers -------------------------------------------------------------------------------------
    def tile_pack(self, op: Op) -> None:
        (buffer,) = op.operands
        self.make(op.result, None)
        index = [self.loop(self.extent_of(buffer, n)) for n in range(3)]
        self.line(f"{self.element(op.result, index)} = {self.element(buffer, index)};")
        for _ in index:
            self.close()

    def tile_centre(self, op: Op) -> None:
        (buffer,), axes = op.operands, op.attrs["axes"]
        self.make(op.result, None)
        token = next(n for n, c in enumerate(axes) if c in "ij")
        index = [self.loop(self.extent_of(buffer, n)) for n in range(len(axes)) if n != token]
        total, count = self.fresh("sum"), self.extent_of(buffer, token)
        self.line(f"{self.types[self.wide]} {total} = 0;")
        t = self.loop(count)
        x = self.element(buffer, [*index[:token], t, *index[token:]])
        self.line(f"{total} += {self.words['isfinite'].format(x)} ? {self.types[self.wide]}({x}) : 0;")
        self.close()
        kind = self.types[op.result.type.dtype]
        self.line(f"{self.element(op.result, index)} = {count} != 0 ? {kind}({total} / {count}) : {kind}(0);")
        for _ in index:
            self.close()

    def tile_peak(self, op: Op) -> None:
        (buffer,) = op.operands
        self.make(op.result, 0.0)
        rank, rows, out = len(buffer.type.shape), op.attrs["rows"], self.element(op.result, [])
        kind = self.types[op.result.type.dtype]
        index = [self.loop(self.extent_of(buffer, n)) for n in range(rank - rows)]
        length = self.fresh("length")
        self.line(f"{kind} {length} = 0;")
        if rows:
            index.append(self.loop(self.extent_of(buffer, rank - 1)))
            self.line(f"{length} += {self.element(buffer, index)} * {self.element(buffer, index)};")
            self.close()
            self.line(f"{length} = {self.words['sqrt'].format(length)};")
        else:
            self.line(f"{length} = {self.words['abs'].format(self.element(buffer, index))};")
        self.line(f"if (!({length} <= {out})) {out} = {length};")
        for _ in range(rank - rows):
            self.close()

    def loop(self, upper: str) -> str:
        """Opens a loop; returns its counter."""
        x = self.fresh("x")
        self.open(f"for ({self.types['index']} {x} = 0; {x} < {upper}; ++{x})")
        return x

    # --- operations ----------------------------------------------------------------------------------------
    def block(self, block: Block) -> None:
        for op in block.ops:
            getattr(self, op.name.replace(".", "_"))(op)

    def tile_for(self, op: Op) -> None:
        self.enter(op)
        p = self.name(op.regions[0].args[0])
        upper, step = self.dim(op.attrs["upper"]), op.attrs["step"]
        self.loop_head(op, p, upper, step)
        self.round(op, 0, p, f"{self.minimum}({step}, {upper} - {p})")

    def loop_head(self, op: Op, p: str, upper: str, step: int) -> None:
        self.open(f"for ({self.types['index']} {p} = 0; {p} < {upper}; {p} += {step})")

    def tile_sweep(self, op: Op) -> None:
        self.sweep(op)

    def sweep(self, op: Op, part: tuple[str, str] | None = None) -> None:
        """Of ``part`` what lies between its bounds."""
        self.enter(op)
        runs, g, i = op.operands[:3]
        kind: RunsType = runs.type
        j, partial = (self.name(v) for v in op.regions[0].args[:2])
        n, base = self.fresh("run"), self.fresh("base")
        size = self.runs_shape(runs)
        block = f"(({self.name(g)} / {kind.heads} % {size[0]}) * {size[1]} + {self.name(i)} / {kind.block})"
        self.line(f"{self.types['index']} {base} = {block} * {size[2]} * 3;")
        self.open(f"for ({self.types['index']} {n} = {base}; {self.run(runs, f'{n} + 2')} != 0; {n} += 3)")
        first, last = self.run(runs, n), self.run(runs, f"{n} + 1")
        if part is not None:
            first, last = f"-{self.minimum}(-({first}), -{part[0]})", f"{self.minimum}({last}, {part[1]})"
        self.open(f"for ({self.types['index']} {j} = {first}; {j} < {last}; {j} += {op.attrs['step']})")
        self.line(f"{self.types['bool']} {partial} = {self.run(runs, f'{n} + 2')} == 1;")
        self.round(op, 0, j, f"{self.minimum}({op.attrs['step']}, {last} - {j})")
        self.close()

    def bounds_of(self, op: Op, part: Value) -> tuple[str, str]:
        upper, step = self.dim(op.attrs["upper"]), op.attrs["step"]
        first, last, n = self.fresh("begin"), self.fresh("end"), step * op.attrs["parts"]
        self.line(f"{self.types['index']} {last} = ({upper} + {n - 1}) / {n} * {step};")
        self.line(f"{self.types['index']} {first} = {self.name(part)} * {last};")
        self.line(f"{last} = {self.minimum}({first} + {last}, {upper});")
        return first, last

    def tile_for_part(self, op: Op) -> None:
        self.enter(op)
        p, step = self.name(op.regions[0].args[0]), op.attrs["step"]
        first, last = self.bounds_of(op, op.operands[0])
        self.open(f"for ({self.types['index']} {p} = {first}; {p} < {last}; {p} += {step})")
        self.round(op, 0, p, f"{self.minimum}({step}, {last} - {p})")

    def tile_sweep_part(self, op: Op) -> None:
        self.sweep(op, self.bounds_of(op, op.operands[3]))

    def round(self, op: Op, arg: int, p: str, extent: str) -> None:
        e = self.fresh("n")
        self.line(f"{self.types['index']} {e} = {extent};")
        self.at[op.regions[0].args[arg]] = e
        self.block(op.regions[0])
        self.close()

    def enter(self, op: Op) -> None:
        """Carried tiles: the results' arrays, which start as the first operands."""
        lead = len(op.regions[0].args) - len(op.results)
        inits = op.operands[len(op.operands) - len(op.results) :]
        for init, r, arg in zip(inits, op.results, op.regions[0].args[lead:], strict=True):
            self.declare(r, self.extent[init])
            self.copy(r, init)
            self.names[arg], self.extent[arg] = self.name(r), self.extent[r]

    def tile_yield(self, op: Op) -> None:
        carrier = self.carriers[op]
        moved = []
        for v in op.operands:  # all are read before any is written
            t = Value(v.type, "moved")
            self.declare(t, self.extent[v])
            self.copy(t, v)
            moved.append(t)
        for t, r in zip(moved, carrier.results, strict=True):
            self.copy(r, t)

    def tile_guard(self, op: Op) -> None:
        for v, r in zip(op.operands, op.results, strict=True):
            self.declare(r, self.extent[v])
            self.copy(r, v)
        found = self.below(op.operands[0], op.attrs["least"])
        self.open(f"if ({found})")
        self.block(op.regions[0])
        self.close()

    def below(self, v: Value, least: float) -> str:
        found = self.fresh("below")
        self.line(f"{self.types['bool']} {found} = {self.types['false']};")
        x = self.each(self.extent[v])
        self.line(
            f"if (!({self.item(v, x)} >= {self.number(least, 'f', v.type.dtype)})) {found} = {self.types['true']};"
        )
        self.done()
        return found

    def tile_require(self, op: Op) -> None:
        v = op.operands[0]
        if isinstance(v.type, TensorType):
            self.open(f"if (!({self.element(v, [])} >= {self.number(op.attrs['least'], 'f', v.type.dtype)}))")
        else:
            self.open(f"if ({self.below(v, op.attrs['least'])})")
        self.refuse()
        self.close()

    def places(self, op: Op, buffer: Value, positions: list[Value], index) -> list[str]:
        """The index of a buffer's element for a tile's."""
        a, out = access(op.attrs["axes"]), []
        repeated = op.name == "tile.load" and repeats(op)
        at = dict(zip(a.walks, positions[repeated:], strict=True))
        of = dict(zip(a.tile, index, strict=True))
        for axis, c in enumerate(a.axes):
            if c in "bhg":
                problem = f"({self.name(at['g'])} + {index[0]})"
                if c != "g":
                    heads = self.dim(op.attrs["sizes"][1])
                    have = self.extent_of(buffer, axis)
                    problem = f"{problem} / ({heads})" if c == "b" else f"{problem} % ({heads}) / (({heads}) / {have})"
                out.append(problem)
            elif c in "cs":
                out.append(self.name(at[c]))
            else:
                out.append(f"{self.name(at[c])} + {of[c]}" if c in at else of[c])
        return [f"({self.extent_of(buffer, n)} == 1 ? 0 : {x})" for n, x in enumerate(out)]

    def tile_load(self, op: Op) -> None:
        buffer, *positions = op.operands
        a, repeated = access(op.attrs["axes"]), repeats(op)
        at = dict(zip(a.walks, positions[repeated:], strict=True))
        if repeated:
            at["1"] = positions[0]
        letters = ("g" if repeated else a.tile[0], *a.tile[1:])
        extents = []
        for c in letters:
            if c in at:
                extents.append(self.at[at[c]])
            elif c == "g":
                extents.append(self.at[positions[0]])
            else:
                extents.append("1" if c == "1" else self.extent_of(buffer, a.axes.index(c)))
        self.declare(op.result, tuple(extents))
        x = self.each(self.extent[op.result])
        value = self.element(buffer, self.places(op, buffer, positions, x))
        self.line(f"{self.item(op.result, x)} = {self.types[op.result.type.dtype]}({value});")
        self.done()

    def tile_store(self, op: Op) -> None:
        value, buffer, *positions = op.operands
        x = self.each(self.extent[value])
        place = self.element(buffer, self.places(op, buffer, positions, x))
        cast = f"{self.types[buffer.type.dtype]}({self.item(value, x)})"
        self.line(f"{place} {'+=' if op.attrs['add'] else '='} {cast};")
        self.done()

    def tile_fill(self, op: Op) -> None:
        at = iter(op.operands)
        letters = access(op.attrs["axes"]).tile
        extents = tuple(
            self.at[next(at)] if c in "gij" else str(int(d)) for c, d in zip(letters, op.result.type.shape, strict=True)
        )
        self.declare(op.result, extents)
        x = self.each(self.extent[op.result])
        self.line(f"{self.item(op.result, x)} = {self.number(op.attrs['value'], 'f', op.result.type.dtype)};")
        self.done()

    def tile_position(self, op: Op) -> None:
        axis, (p,) = op.attrs["axes"], op.operands
        n = self.at[p]
        self.declare(op.result, ("1" if axis in "ij" else n, n if axis == "i" else "1", n if axis == "j" else "1"))
        x = self.each(self.extent[op.result])
        at = f"({self.name(p)} + {x[{'i': 1, 'j': 2}.get(axis, 0)]})"
        heads = self.dim(op.attrs["sizes"][1]) if axis in "bh" else ""
        value = {"b": f"{at} / ({heads})", "h": f"{at} % ({heads})"}.get(axis, at)
        self.line(f"{self.item(op.result, x)} = {value};")
        self.done()

    def tile_dot(self, op: Op) -> None:
        a, b, *c = op.operands
        form, (ga, ia, ja), (_, ib, jb) = op.attrs["form"], self.extent[a], self.extent[b]
        self.declare(op.result, {"nt": (ga, ia, ib), "nn": (ga, ia, jb), "tn": (ga, ja, jb)}[form])
        n = {"nt": ja, "nn": ja, "tn": ia}[form]
        x = self.each(self.extent[op.result])
        k, total = self.fresh("k"), self.fresh("sum")
        g, i, j = x
        left, right = {"nt": ((g, i, k), (g, j, k)), "nn": ((g, i, k), (g, k, j)), "tn": ((g, k, i), (g, k, j))}[form]
        start = self.item(c[0], x) if c else self.number(0.0, "f", op.result.type.dtype)
        self.line(f"{self.types[op.result.type.dtype]} {total} = {start};")
        self.line(
            f"for ({self.types['index']} {k} = 0; {k} < {n}; ++{k}) "
            f"{total} += {self.item(a, left)} * {self.item(b, right)};"
        )
        self.line(f"{self.item(op.result, x)} = {total};")
        self.done()

    def tile_map(self, op: Op) -> None:
        shape = []
        for axis in range(3):
            known = [self.extent[v][axis] for v in op.operands if int(v.type.shape[axis]) != 1]
            shape.append(known[0] if known else "1")
        for program, r in zip(op.attrs["programs"], op.results, strict=True):
            self.declare(r, tuple(shape))
            x = self.each(self.extent[r])
            value = self.expression(program, op.operands, x, r.type.dtype)
            self.line(f"{self.item(r, x)} = {value};")
            self.done()

    def tile_mask(self, op: Op) -> None:
        tile, partial, *captures = op.operands
        self.declare(op.result, self.extent[tile])
        x = self.each(self.extent[op.result])
        keep = self.expression(op.attrs["mask"], captures, x, self.wide)
        fill = self.number(op.attrs["value"], "f", op.result.type.dtype)
        self.line(f"{self.item(op.result, x)} = (!{self.name(partial)} || {keep}) ? {self.item(tile, x)} : {fill};")
        self.done()

    def tile_reduce(self, op: Op) -> None:
        tile, *into = op.operands
        over, (g, i, j) = op.attrs["over"], self.extent[tile]
        self.declare(op.result, (g, "1" if "i" in over else i, "1" if "j" in over else j))
        first = {"sum": 0.0, "max": float("-inf"), "min": float("inf")}[op.attrs["op"]]
        x = self.each(self.extent[op.result])
        start = self.item(into[0], x) if into else self.number(first, "f", op.result.type.dtype)
        self.line(f"{self.item(op.result, x)} = {start};")
        self.done()
        x = self.each(self.extent[tile])
        word = {"sum": "add", "max": "maximum", "min": "minimum"}[op.attrs["op"]]
        to = self.item(op.result, (x[0], "0" if "i" in over else x[1], "0" if "j" in over else x[2]))
        self.line(f"{to} = {self.words[word].format(to, self.item(tile, x))};")
        self.done()

    def part(self, op: Op, x) -> tuple[str, str, str]:
        at = {"i": 1, "j": 2}[op.attrs["over"]]
        return tuple(f"{op.attrs['start']} + ({c}) * {op.attrs['stride']}" if n == at else c for n, c in enumerate(x))

    def tile_slice(self, op: Op) -> None:
        (whole,) = op.operands
        at = {"i": 1, "j": 2}[op.attrs["over"]]
        e = list(self.extent[whole])
        e[at] = str(int(op.result.type.shape[at]))
        self.declare(op.result, tuple(e))
        x = self.each(self.extent[op.result])
        self.line(f"{self.item(op.result, x)} = {self.item(whole, self.part(op, x))};")
        self.done()

    def tile_insert(self, op: Op) -> None:
        part, whole = op.operands
        self.declare(op.result, self.extent[whole])
        self.copy(op.result, whole)
        x = self.each(self.extent[part])
        self.line(f"{self.item(op.result, self.part(op, x))} = {self.item(part, x)};")
        self.done()
