"""The backward tile function: weights are recomputed tile by tile from the log-sum-exp, nothing is N*M.

With P the weights, g_m = <grad_o, w_m> for each term c_m * w_m of the carried value:
dP = sum c_m g_m, and dS by the cotangent of the normaliser. With softmax, dS = P (dP - <grad_o, o> + grad_lse) and
P = exp(s - m) / l, m and l the row's largest score and sum as the forward found them; 1/l is taken into the gradients
of the row, so that it costs nothing per pair. Score and coefficients are then differentiated symbolically with respect
to their atoms, and each atom's cotangent goes where the atom came from.
"""

from __future__ import annotations

from aatc.ir.access import owned_by, owns_problem
from aatc.ir.core import Func, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.normalizers import SCORE, WEIGHT
from aatc.ir.schedule import Schedule
from aatc.ir.score.derivative import gradients
from aatc.ir.score.expr import ZERO, Expr, add, call, const, mul, param, params, postorder, substitute
from aatc.ir.score.program import Program
from aatc.ir.tile_pairs import gradient_types
from aatc.ir.types import INDEX, TensorType, TileType
from aatc.passes.factor import COTANGENT, ChannelSum, Contraction, Lookup, Refined, Square, Stored, Token
from aatc.passes.gradients import operand_gradients, square_cotangents
from aatc.passes.lowering import (
    TILE_OF,
    Attention,
    Builder,
    compute_tokens,
    load_channel,
    new_func,
    pack_tokens,
    token_type,
)
from aatc.passes.tile_checks import bound_refined, bound_squares
from aatc.passes.tile_core import (
    Frame,
    at_positions,
    atom_env,
    bounds,
    classify,
    compute_atoms,
    loops,
    mask_tile,
    position_programs,
    sweep,
)
from aatc.passes.tile_forward import Forms
from aatc.passes.tile_rows import Extra, backward_arguments, extra_tokens, row_cotangent

P, DW, DS = WEIGHT, param("dw_", "bhij"), param("ds_", "bhij")
_COTANGENTS = ("p_", "ds_", "dz_", "dy_")  # 0 at closed pairs


def lower_backward(a: Attention, forms: Forms, s: Schedule, name: str, *, summed: bool) -> tuple[Func, list[str]]:
    """``(grad_o, grad_lse, o, statistics, q, k, v, captures) -> gradients``; also their names. ``summed``: the
    statistics are the log-sum-exp, all that the library's kernel tells of a row.

    The order of the schedule, rows: blocks of queries one after the other, which add into the gradients of keys.
    rows-and-columns: in parallel over blocks of queries, then over blocks of keys; weights are computed twice.
    """
    lead, inputs = backward_arguments(a, summed)
    b = Builder(a.op.loc, a.dtype)
    fr = Frame(a, forms.f, s, b, dict(zip(a.names, inputs, strict=True)))
    fr.operands |= lead
    a.tails |= {"grad_o__": (a.value_width,), "o__": (a.value_width,), "summed": (a.value_width,)}
    fr.buffers = compute_tokens(b, a, fr.f, fr.operands, fr.f.tokens.values())
    bound_refined(fr, forms.refined, forms.digits)
    bound_squares(fr, forms.squares, forms.digits)
    extra = extra_tokens(fr, forms, summed)
    plan = _Plan(fr, forms, extra)
    pack_tokens(b, s, fr.buffers, fr.f.tokens.values())
    fr.tile_map = classify(fr, s.rows, s.heads)
    plan.allocate()
    if s.order == "rows":
        loops(fr, plan.block, "seq")  # rows add into the gradients of shared keys
    else:
        plan.side = "i"
        loops(fr, plan.block)
        plan.side, fr.tile_map = "j", classify(fr, s.rows, s.heads, "i")
        loops(fr, plan.block, blocks="j")
    results, grads = plan.finish()
    return new_func(name, b, [*lead.values(), *inputs], results, {"schedule": str(s)}), grads


class _Plan:
    """Which cotangents exist, where they are summed, and the code of one block of rows."""

    def __init__(self, fr: Frame, forms: Forms, extra: Extra):
        self.fr, self.forms, self.extra = fr, forms, extra
        self.outputs: list[tuple[Expr, Expr]] = []
        if forms.weight is not None:
            assert forms.plain_score is not None
            self.score, self.factor = forms.plain_score, 1.0
        else:
            self.score, self.factor = forms.score, 1 / forms.unit
        self.outputs.append((self.score, DS))
        self.coefs = [t for t in forms.carry if not (t.coef.is_const)]
        for n, t in enumerate(self.coefs):
            # score cotangents carry a factor that is divided out at the end, so coefficients get its inverse
            self.outputs.append((t.coef, mul(const(1 / self.factor), param(f"dc{n}_", "bhij"))))
        leaves = [x.atom for x in fr.f.atoms.values() if x.atom.dtype == "f"]
        leaves += [t.atom for t in fr.f.tokens.values() if t.dtype == "f"]
        self.cotangents = gradients(self.outputs, leaves, far=fr.a.far)
        self._through_channels()
        self._through_refined(leaves)
        inner = (*self.channel_grads.values(), *self.refined_grads.values())
        self.reached = {*self.cotangents, *(e for grads in inner for e in grads)}
        self.side = "ij"  # whose gradients are summed: of queries, of keys, or of both in one loop
        self.sums: dict[tuple[Value, str], Value] = {}  # tiles of gradients that the sweep carries, by buffer and axes

    def _through_channels(self) -> None:
        """Atoms inside channel sums get their share inside the channel loop; the sums' own numbers too."""
        self.channels = [x for x in self.fr.f.atoms.values() if isinstance(x, ChannelSum) and x.atom in self.cotangents]
        self.channel_grads: dict[str, dict[Expr, Expr]] = {}
        for x in self.channels:
            g = param("dz_", "bhij")
            inside = [p for p, _ in (*x.rows, *x.cols)]
            outside = [e.atom for e in self.fr.f.atoms.values() if e.atom.dtype == "f"]
            outside += [t.atom for t in self.fr.f.tokens.values() if t.dtype == "f"]
            wanted = [*inside, *outside]
            self.channel_grads[x.atom.name] = gradients([(x.body, g)], wanted, far=self.fr.a.far)

    def _through_refined(self, leaves: list[Expr]) -> None:
        """Numbers that are refined pass on to contractions what comes from pairs that were not."""
        found = [x for x in self.fr.f.atoms.values() if isinstance(x, Refined) and x.atom in self.cotangents]
        self.refined = {x.atom: x for x in found}
        far, g = self.fr.a.far, param("dy_", "bhij")
        self.refined_grads = {x.atom: gradients([(x.plain, g)], leaves, far=far) for x in found}

    # --- buffers -------------------------------------------------------------------------------------------
    def allocate(self) -> None:
        """A zeroed buffer for every token that receives a gradient."""
        for t in self._receivers():
            self.extra.buffers[t.name] = self._zeros(t, f"d_{t.name}")
        for term in self.forms.carry:
            name = term.vector.name
            self.extra.values[name] = self._zeros(term.vector, f"d_{name}_v")
        #: Of squares, what near pairs send to either vector before the square's slope maps it.
        self.moments: dict[tuple[Square, Token], Value] = {}
        for square in (x for x in self.refined.values() if isinstance(x, Square)):
            for t in (square.row, square.col):
                self.moments[square, t] = self._zeros(t, f"{square.atom.name}_{t.name}")
        self.pairs: dict[str, Value] = {}
        for x in self.fr.f.atoms.values():
            if isinstance(x, Stored) and x.atom in self.reached:
                self.pairs[x.source.name] = self._like_operand(x.source.name)
            elif isinstance(x, Lookup) and x.atom in self.reached and x.table.name not in self.pairs:
                self.pairs[x.table.name] = self._like_operand(x.table.name)

    def _like_operand(self, name: str) -> Value:
        kind = TensorType(self.fr.a.dtype, self.fr.a.types[name].shape)
        return self.fr.b.op("tile.alloc", [], [kind], names=[f"d_{name}"], fill=0.0)[0]

    def _zeros(self, t: Token, name: str) -> Value:
        kind = token_type(self.fr.a, Token(t.name, t.expr, "bh") if t.axes == "" else t)
        return self.fr.b.op("tile.alloc", [], [kind], names=[name], fill=0.0)[0]

    def _receivers(self) -> list[Token]:
        """Tokens that the score or a coefficient sends gradients to."""
        names: dict[str, Token] = {}
        by_atom = {t.atom: t for t in self.fr.f.tokens.values()}
        for leaf in self.cotangents:
            if leaf in by_atom:
                names[by_atom[leaf].name] = by_atom[leaf]
        for x in self.fr.f.atoms.values():
            if isinstance(x, Contraction) and x.atom in self.reached:
                names |= {x.row.name: x.row, x.col.name: x.col}
        for x in self.channels:
            names |= {t.name: t for _, t in (*x.rows, *x.cols)}
            names |= {by_atom[e].name: by_atom[e] for e in self.channel_grads[x.atom.name] if e in by_atom}
        for y, grads in self.refined_grads.items():
            if not isinstance(self.refined[y], Square):
                names |= {t.name: t for t in self.refined[y].tokens}
            names |= {by_atom[e].name: by_atom[e] for e in grads if e in by_atom}
        return list(names.values())

    # --- one block of rows, or of columns ------------------------------------------------------------------
    def block(self, fr: Frame) -> None:
        b, s = fr.b, fr.s
        axis = "j" if self.side == "j" else "i"
        carried_in = self._carried(axis)
        extent = s.rows if axis == "i" else s.cols
        inits = [
            b.fill(0.0, axes, fr.at, s.heads, extent, int(v.type.shape[-1]), name=f"{v.name}_0")  # type: ignore[attr-defined]
            for v, axes in carried_in
        ]

        def body(inner: Frame, partial: Value | None, carried: list[Value]) -> list[Value]:
            self.sums = dict(zip(carried_in, carried, strict=True))
            self._tile(inner, partial)
            done, self.sums = [self.sums[x] for x in carried_in], {}
            return done

        names = [f"{v.name}_sum" for v, _ in carried_in]
        results = sweep(fr, inits, names, "seq", body, "j" if axis == "i" else "i")
        for (buffer, axes), v in zip(carried_in, results, strict=True):
            self._add(fr, buffer, axes, v)

    def _carried(self, axis: str) -> list[tuple[Value, str]]:
        """Gradients of the block's own vectors by contractions: they stay in tiles until the sweep ends."""
        dots = [x for x in self.fr.f.atoms.values() if isinstance(x, Contraction) and x.atom in self.reached]
        if axis == "i":
            return list(dict.fromkeys((self.extra.buffers[x.row.name], "gid") for x in dots))
        found = [(self.extra.values[t.vector.name], "gjd") for t in self.forms.carry if t.col]
        return list(dict.fromkeys([*found, *((self.extra.buffers[x.col.name], "gjd") for x in dots)]))

    def _tile(self, fr: Frame, partial: Value | None) -> None:
        b, s = fr.b, fr.s
        pair = b.tile(s.heads, s.rows, s.cols)
        weight = self.forms.pair_weight if self.forms.weight is not None else self.forms.seen_score
        compute_atoms(fr, [*(e for e, _ in self.outputs), weight])
        p = self._weights(fr, partial, pair)
        fr.tiles["p_"] = p
        d_weight = self._values(fr, p, pair)
        body = self._score_cotangent()
        given = [x for x in params(body) if x not in (P, DW)]
        (ds,) = b.map([("ds", body, pair)], {**atom_env(fr, given), "p_": p, "dw_": d_weight})
        # p is 0 at closed pairs; what it was multiplied by may be anything there
        if not _plain_sum(self.forms) or not _is_multiple(body, P):
            ds = mask_tile(fr, self.forms.mask, ds, partial, 0.0, "ds_masked")
        fr.tiles["ds_"] = ds
        self._distribute(fr, self.cotangents)
        for x in self.channels:
            self._channels(fr, x)

    def _atoms_of_row(self) -> dict[Expr, Expr]:
        return {x.next: t.atom for x, t in self.extra.given.items()}

    def _score_cotangent(self) -> Expr:
        """The gradient of a score over P, DW and atoms."""
        n = self.forms.normalizer
        found = n.cotangent(self.forms.unit, DW, self.extra.rho.atom)
        return substitute(found, {SCORE: self.forms.seen_score, **self._atoms_of_row()})

    def _weights(self, fr: Frame, partial: Value | None, pair: TileType) -> Value:
        forms = self.forms
        body = forms.weight if forms.weight is not None else forms.weight_of(self._atoms_of_row())
        (p,) = fr.b.map([("p", body, pair)], atom_env(fr, [body]))
        return mask_tile(fr, self.forms.mask, p, partial, 0.0, "p_masked")

    def _values(self, fr: Frame, p: Value, pair: TileType) -> Value:
        """Value gradients of the tile; returns dP, and leaves the coefficients' cotangents in reach."""
        b = fr.b
        grad = fr.tile(self.extra.grad)
        parts: list[Expr] = []
        env: dict[str, Value] = {"p_": p}
        seen = 0
        for n, term in enumerate(self.forms.carry):
            if term.col:
                fr.tiles[f"g{n}_"] = b.dot("nt", grad, fr.tile(term.vector), name=f"g{n}")
                inner = param(f"g{n}_", "bhij")
            else:
                inner = self.extra.row_dots[term.vector.name].atom
            parts.append(mul(term.coef, inner))
            scaled = p
            if not (term.coef.is_const and term.coef.value == 1):
                env |= atom_env(fr, [term.coef])
                (scaled,) = b.map([(f"pc{n}", mul(P, term.coef), pair)], {**atom_env(fr, [term.coef]), "p_": p})
                scaled = mask_tile(fr, self.forms.mask, scaled, fr.partial, 0.0, f"pc{n}_masked")
            if term.col:
                self._add_dot(fr, self.extra.values[term.vector.name], "gjd", (scaled, grad), f"d_{term.vector.name}_t")
            else:
                mass = b.reduce("sum", "j", scaled, name="mass")
                (row,) = b.map(
                    [("dv", mul(param("mass_", "bhi"), param("grad_", "bhid")), grad.type)],  # type: ignore[list-item]
                    {"mass_": mass, "grad_": grad},
                )
                self._add(fr, self.extra.values[term.vector.name], "gid", row)
            if not term.coef.is_const:
                (dc,) = b.map([(f"dc{seen}", mul(P, inner), pair)], {**atom_env(fr, [inner]), "p_": p})
                fr.tiles[f"dc{seen}_"] = dc
                seen += 1
        total = parts[0]
        for x in parts[1:]:
            total = add(total, x)
        if total.fn == "param":
            return atom_env(fr, [total])[total.name]
        return b.map([("dw", total, pair)], {**atom_env(fr, [total]), **env})[0]

    # --- cotangents to where they belong -------------------------------------------------------------------
    def _distribute(self, fr: Frame, cotangents: dict[Expr, Expr]) -> None:
        b, s = fr.b, fr.s
        atoms = {x.atom: x for x in fr.f.atoms.values()}
        tokens = {t.atom: t for t in fr.f.tokens.values()}
        tile = b.tile(s.heads, s.rows, s.cols)
        for leaf, g in cotangents.items():
            x = atoms.get(leaf)
            if isinstance(x, ChannelSum):
                compute_atoms(fr, [g])
                fr.tiles[f"{leaf.name}_dz"] = self._evaluate(fr, g, tile, f"d_{leaf.name}")
                continue
            value = self._evaluate(fr, g, tile, f"d_{leaf.name}")
            if isinstance(x, Refined):
                self._refined(fr, x, value)
            elif isinstance(x, Contraction):
                rows, cols = self.extra.buffers[x.row.name], self.extra.buffers[x.col.name]
                self._add_dot(fr, rows, "gid", (value, fr.tile(x.col)), f"d_{x.row.name}")
                self._add_dot(fr, cols, "gjd", (value, fr.tile(x.row)), f"d_{x.col.name}")
            elif isinstance(x, Stored):
                self._add(fr, self.pairs[x.source.name], x.source.attrs[1], value)
            elif isinstance(x, Lookup):
                self._scatter(fr, x, value)
            else:
                self._add_number(fr, tokens[leaf], value)

    def _evaluate(self, fr: Frame, g: Expr, tile: TileType, name: str) -> Value:
        compute_atoms(fr, [g])
        env = atom_env(fr, [g])
        if g.fn == "param" and g.is_pair:
            return env[g.name]
        if not g.is_pair:  # constant along the tile: still one number per pair, to be summed over it
            g = add(g, call("mul", ZERO, P))
            env = atom_env(fr, [g])
        return self._closed(fr, g, fr.b.map([(name, g, tile)], env)[0])

    def _may_be_wild(self, fr: Frame, g: Expr) -> bool:
        """Whether a cotangent need not be 0 at closed pairs."""
        closed = all(p.name in _COTANGENTS or not p.axes & {"i", "j"} for p in params(g)) and _is_linear(g)
        return not closed and fr.partial is not None

    def _closed(self, fr: Frame, g: Expr, value: Value) -> Value:
        """A cotangent, 0 at closed pairs: there the slope it was multiplied by need not be finite."""
        if not self._may_be_wild(fr, g):
            return value
        return mask_tile(fr, self.forms.mask, value, fr.partial, 0.0, "closed")

    def _refined(self, fr: Frame, x: Refined, value: Value) -> None:
        """Pairs that were computed again send gradients straight to their tokens, all others through contractions."""
        tokens = (x.row, x.col) if isinstance(x, Square) else x.tokens
        read = (COTANGENT, *(t.atom for t in tokens))
        programs = tuple(Program(read, g) for g in x.grads)
        operands = [value, fr.tiles[x.atom.name], *bounds(fr, x), *map(fr.tile, tokens)]
        op = Op("tile.refine_gradient", operands, {"programs": programs})
        rest, *grads = fr.b.op(
            op.name,
            op.operands,
            gradient_types(op),
            names=[f"d_{x.atom.name}_rest", *(f"d_{t.name}_own" for t in tokens)],
            programs=programs,
            inside=x.inside or None,
        )
        for t, d in zip(tokens, grads, strict=True):
            buffer = self.moments[x, t] if isinstance(x, Square) else self.extra.buffers[t.name]
            self._add(fr, buffer, TILE_OF[t.axes] or "g", d)
        fr.tiles["dy_"] = rest
        self._distribute(fr, self.refined_grads[x.atom])

    def _add_number(self, fr: Frame, t: Token, value: Value) -> None:
        over, axes = {"bhi": ("j", "gi"), "bhj": ("i", "gj")}.get(t.axes, ("ij", "g"))
        self._add(fr, self.extra.buffers[t.name], axes, fr.b.reduce("sum", over, value, name=f"d_{t.name}_s"))

    def _wanted(self, axes: str) -> bool:
        """Whether what a buffer of ``axes`` is to be added is this loop's business; of the two loops over rows and
        columns, the one over rows sees to what belongs to neither side."""
        return "i" in self.side if "i" in axes or "j" not in axes else "j" in self.side

    def _add_dot(self, fr: Frame, buffer: Value, axes: str, factors: tuple[Value, Value], name: str) -> None:
        """Adds a product of tiles: (i,j)(j,d) for queries, (i,j)(i,d) for keys."""
        if not self._wanted(axes):
            return
        carried = self.sums.get((buffer, axes))
        found = fr.b.dot("nn" if axes == "gid" else "tn", *factors, carried, name=name)
        if carried is None:
            self._add(fr, buffer, axes, found)
        else:
            self.sums[buffer, axes] = found

    def _add(self, fr: Frame, buffer: Value, axes: str, value: Value) -> None:
        if not self._wanted(axes):
            return
        shape: tuple[Dim, ...] = buffer.type.shape  # type: ignore[attr-defined]
        fr.b.op(
            "tile.store",
            [value, buffer, *at_positions(fr, axes)],
            axes=axes,
            add=True,
            sizes=fr.a.sizes if set(axes) & {"b", "h"} else None,
            shared=fr.shared(lambda loop: owned_by(axes, shape, fr.a.sizes, loop)),
        )

    def _scatter(self, fr: Frame, x: Lookup, value: Value) -> None:
        if not self._wanted(""):
            return
        positions, tiles = position_programs(fr, x)
        table, axes = self.pairs[x.table.name], x.table.attrs[1]
        lead, shape = axes[: len(axes) - len(axes.lstrip("bh"))], table.type.shape  # type: ignore[attr-defined]
        fr.b.op(
            "tile.scatter",
            [value, table, fr.at["g"], *tiles],
            positions=positions,
            axes=axes,
            sizes=fr.a.sizes,
            shared=fr.shared(lambda loop: loop == "g" and owns_problem(lead, shape, fr.a.sizes)),
        )

    def _channels(self, fr: Frame, x: ChannelSum) -> None:
        """The channel loop backwards: one channel's cotangents at a time, then those of the numbers inside."""
        b, s = fr.b, fr.s
        grads = self.channel_grads[x.atom.name]
        dz = fr.tiles[f"{x.atom.name}_dz"]
        tile = b.tile(s.heads, s.rows, s.cols)
        inside = dict((*x.rows, *x.cols))
        outside = {e: g for e, g in grads.items() if e not in inside}
        atom_env(fr, [p for g in grads.values() for p in params(g) if p not in inside and p.name != "dz_"])
        inits = [b.fill(0.0, "gij", fr.at, s.heads, s.rows, s.cols, name=f"d_{e.name}_0") for e in outside]
        c, *carried = b.open([INDEX, *(v.type for v in inits)], ["c", *(f"d_{e.name}_acc" for e in outside)])
        env = {**fr.tiles, "dz_": dz}
        inner = fr.scoped()
        inner.at["c"] = c
        for p, t in inside.items():
            env[p.name] = load_channel(b, fr.a, s, t, fr.buffers[t.name], inner.at)
        for p, t in inside.items():
            if p not in grads:
                continue
            (d,) = b.map([(f"d_{p.name}", _full(grads[p], "dz_"), tile)], env)
            d = self._closed(fr, grads[p], d)
            row = p.axes >= {"i"}
            summed = b.reduce("sum", "j" if row else "i", d, name=f"d_{p.name}_s")
            axes = "gic" if row else "gjc"
            self._add(inner, self.extra.buffers[t.name], axes, summed)
        new = []
        for (e, g), acc in zip(outside.items(), carried, strict=True):
            acc_, share = param("acc_", "bhij"), _full(g, "dz_")
            if self._may_be_wild(fr, g):  # closed before it is added: what is carried is added to, and no more
                (d,) = b.map([(f"d_{e.name}_c", share, tile)], env)
                env["share_"] = self._closed(fr, g, d)
                share = param("share_", "bhij")
            new += b.map([(f"d_{e.name}_n", call("add", acc_, share), tile)], {**env, "acc_": acc})
        body = b.close(new)
        token = next(iter(inside.values()))
        totals = b.op(
            "tile.for",
            inits,
            [v.type for v in inits],
            regions=[body],
            axis="c",
            upper=fr.a.width(token.expr),
            step=1,
            kind="red",
        )
        for e, v in zip(outside, totals, strict=True):
            fr.tiles[f"tot_{e.name}"] = v
            self._distribute(fr, {e: param(f"tot_{e.name}", "bhij")})

    # --- after the loops -----------------------------------------------------------------------------------
    def finish(self) -> tuple[list[Value], list[str]]:
        """Gradients of the operands from those of the tokens."""
        fr = self.fr
        env = dict(fr.operands)
        sides: dict[str, list[tuple[Expr, Expr]]] = {}
        for t, ct in self._token_cotangents(env):
            sides.setdefault(t.axes[2:3], []).append((t.expr, ct))
        for t, e, ct in square_cotangents(self.moments, self.factor, env):
            sides.setdefault(t.axes[2:3], []).append((e, ct))
        if self.forms.epilogue is not None:
            sides.setdefault("i", []).append((self.forms.epilogue, param("grad_o__", "bhid")))
            env[self.forms.place.name] = fr.operands["o__"]
        if self.forms.row is not None:
            sides.setdefault("i", []).append((self.forms.row, row_cotangent(self.extra.summed)))
        ready = {name: self._pair_gradient(name) for name in self.pairs}
        return operand_gradients(fr, sides, env, ready)

    def _token_cotangents(self, env: dict[str, Value]) -> list[tuple[Token, Expr]]:
        """(token, cotangent) for every gradient buffer; enters the buffers in ``env``."""
        out = []
        for t in self._receivers():
            ct = param(f"ct_{t.name}__", t.axes or "bh")
            env[ct.name] = self.extra.buffers[t.name]
            out.append((t, mul(const(self.factor), ct)))
        for t in dict.fromkeys(term.vector for term in self.forms.carry):
            ct = param(f"cv_{t.name}__", t.axes)
            env[ct.name] = self.extra.values[t.name]
            out.append((t, ct))
        return out

    def _pair_gradient(self, name: str) -> Value:
        return self.fr.b.op(
            "tile.finish", [self.pairs[name]], [self.fr.a.types[name]], names=[f"d_{name}"], factor=self.factor
        )[0]


def _plain_sum(forms: Forms) -> bool:
    """Whether what is carried are vectors of keys, with constant coefficients."""
    return all(t.col and t.coef.is_const for t in forms.carry)


def _is_multiple(e: Expr, factor: Expr) -> bool:
    """Whether ``factor`` is among the factors of ``e``."""
    return e is factor or (e.fn == "mul" and any(_is_multiple(x, factor) for x in e.args))


def _is_linear(g: Expr) -> bool:
    return all(e.fn in ("add", "sub", "mul", "neg", "param", "const") for e in postorder(g))


def _full(g: Expr, pair: str) -> Expr:
    """``g`` as a number per pair even where it does not mention one."""
    return g if g.is_pair else add(g, call("mul", ZERO, param(pair, "bhij")))
