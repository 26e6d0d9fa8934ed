"""Second sums beside those of weights: of the weights as products take them, for what divides the products.

A softmax's output is a sum of products over the sum of the weights. Where products take rounded weights, dividing by
the sum of the same rounded weights leaves a mean; the log-sum-exp and what the backward takes stay those of the exact
weights. So each statistic that depends on a sum and leads to the output gets a twin: a result of a map, a value that a
loop or a branch carries, the sum itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aatc.ir.access import access
from aatc.ir.core import Block, Func, Op, Value
from aatc.ir.registry import lookup_op

_CARRY = ("tile.for", "tile.sweep", "tile.guard")


class RoundedSums:
    """Of ``sums``, operations of a function."""

    def __init__(self, func: Func, sums: Sequence[Op]):
        self.func, self.sums = func, sums
        self.rounded: Mapping[Op, Value] = {}
        self.twins: dict[Value, Value] = {}
        self.blocks: dict[Op, Block] = {}
        self.carriers: dict[Value, tuple[Op, int]] = {}  # by their region's arguments: what carries, which value
        for block in [func.body, *(r for op in func.body.walk() for r in op.regions)]:
            self.blocks.update(dict.fromkeys(block.ops, block))
        for op in func.body.walk():
            if op.name in _CARRY and op.regions[0].args:
                for n, arg in enumerate(op.regions[0].args[lookup_op(op.name).traits.carried[1] :]):
                    self.carriers[arg] = op, n
        self.changed = self._dependent()

    def _dependent(self) -> set[Value]:
        """All that depends on one of the sums."""
        found: set[Value] = {op.result for op in self.sums}
        before = -1
        while len(found) > before:
            before = len(found)
            for op in self.func.body.walk():
                if op.name in _CARRY:
                    skip, lead = lookup_op(op.name).traits.carried
                    inside, args = op.regions[0].ops[-1].operands, op.regions[0].args[lead:]
                    for n, r in enumerate(op.results):
                        if inside[n] in found or op.operands[skip + n] in found:
                            found |= {r, *args[n : n + 1]}
                elif any(v in found for v in op.operands):
                    found.update(op.results)
        return found

    @property
    def stores(self) -> list[Op]:
        """Stores of vectors that a sum has gone into."""
        stores = (op for op in self.func.body.walk() if op.name == "tile.store" and op.operands[0] in self.changed)
        return [op for op in stores if access(op.attrs["axes"]).inside == "id"]

    def possible(self) -> bool:
        """Whether only maps, loops and branches lie between the sums and the output."""
        seen: set[Value] = set()
        todo = [op.operands[0] for op in self.stores]
        found = bool(todo)
        while todo:
            v = todo.pop()
            if v in seen or v not in self.changed:
                continue
            seen.add(v)
            op = v.owner if isinstance(v.owner, Op) else self.carriers[v][0] if v in self.carriers else None
            if op is not None and op.name in _CARRY:
                n = op.results.index(v) if v in op.results else self.carriers[v][1]
                todo += [op.operands[lookup_op(op.name).traits.carried[0] + n], op.regions[0].ops[-1].operands[n]]
            elif op is not None and (op.name == "tile.map" or op in self.sums):
                todo += op.operands if op.name == "tile.map" else op.operands[1:]
            else:
                return False
        return found

    def add(self, rounded: Mapping[Op, Value]) -> None:
        """Makes the twins, and stores those of the output. ``rounded``: what the twin of a sum adds up."""
        self.rounded = rounded
        for op in self.stores:
            op.operands[0] = self.twin(op.operands[0])

    def twin(self, v: Value) -> Value:
        """What stands for a value where rounded weights are added up."""
        if v not in self.changed:
            return v
        if v not in self.twins:
            op = v.owner if isinstance(v.owner, Op) else self.carriers[v][0]
            if op.name in _CARRY:
                self._carried(op, op.results.index(v) if v in op.results else self.carriers[v][1])
            else:
                self._again(op, v)
        return self.twins[v]

    def _again(self, op: Op, v: Value) -> None:
        """A map with the program of one result, or a sum."""
        attrs = dict(op.attrs)
        if op in self.sums:
            operands = [self.rounded[op], *map(self.twin, op.operands[1:])]
        else:
            operands = [*map(self.twin, op.operands)]
            attrs["programs"] = (op.attrs["programs"][op.results.index(v)],)
        made = Op(op.name, operands, attrs, [v.type], loc=op.loc, result_names=[f"{v.name}_r"])
        ops = self.blocks[op].ops
        ops.insert(ops.index(op) + 1, made)
        self.blocks[made] = self.blocks[op]
        self.twins[v] = made.result

    def _carried(self, op: Op, n: int) -> None:
        """One more value that a loop or a branch carries."""
        skip, lead = lookup_op(op.name).traits.carried
        region = op.regions[0]
        first, args, name = self.twin(op.operands[skip + n]), region.args[lead:], f"{op.results[n].name}_r"
        result = Value(op.results[n].type, name, op)
        self.twins[op.results[n]] = result
        if args:
            self.twins[args[n]] = Value(result.type, f"{args[n].name}_r", region)
        last = self.twin(region.ops[-1].operands[n])
        op.operands = [*op.operands, first]
        op.results = [*op.results, result]
        region.args = [*region.args, *([self.twins[args[n]]] if args else [])]
        region.ops[-1].operands = [*region.ops[-1].operands, last]
