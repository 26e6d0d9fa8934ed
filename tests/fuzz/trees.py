"""Random programs of the score language as plain trees: ("add", x, y), ("item", x, c), ("cap", name, axes) ...

Every value stays near 1 in size where the features do, and every choice that rounding could tip (a comparison, a
floor, a rounded position) is either exact in every dtype or decided by numbers far from the edge.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.fuzz.tensors import Leaf

Tree = tuple
NUMBER_AXES = ("", "h", "b", "bh", "i", "j", "bi", "bj", "hi", "hj", "bhi", "bhj", "ij", "hij", "bij", "bhij")
VECTOR_AXES = ("", "h", "b", "bh", "i", "j", "bi", "bhj", "bhi", "hj")

UNARY: dict[str, Callable[[Tree], Tree]] = {
    "tanh": lambda x: ("tanh", x),
    "sin": lambda x: ("sin", x),
    "cos": lambda x: ("cos", x),
    "sigmoid": lambda x: ("sigmoid", x),
    "softplus": lambda x: ("softplus", x),
    "relu": lambda x: ("relu", x),
    "abs": lambda x: ("abs", x),
    "neg": lambda x: ("neg", x),
    "square": lambda x: ("square", ("tanh", x)),
    "exp": lambda x: ("exp", ("neg", ("abs", x))),
    "exp2": lambda x: ("exp2", ("tanh", x)),
    "log": lambda x: ("log", ("add", ("const", 1.0), ("abs", x))),
    "log2": lambda x: ("log2", ("add", ("const", 0.5), ("abs", x))),
    "log1p": lambda x: ("log1p", ("abs", x)),
    "sqrt": lambda x: ("sqrt", ("add", ("abs", x), ("const", 0.125))),
    "sqrt-signed": lambda x: ("sqrt", ("add", x, ("const", 0.3))),
    "rsqrt": lambda x: ("rsqrt", ("add", ("square", x), ("const", 0.25))),
    "reciprocal": lambda x: ("reciprocal", ("add", ("abs", x), ("const", 0.5))),
    "acosh": lambda x: ("acosh", ("add", ("const", 1.25), ("abs", x))),
    "expacosh": lambda x: ("expacosh", ("add", ("const", 1.25), ("abs", x))),
    "acosh-clamped": lambda x: ("acosh", ("mul", ("const", 1.7), x)),
    "expacosh-clamped": lambda x: ("expacosh", ("mul", ("const", 1.7), x)),
    "acos-clamped": lambda x: ("acos", ("mul", ("const", 1.3), x)),
    "asinsqrt-clamped": lambda x: ("asinsqrt", x),
    "acos": lambda x: ("acos", ("mul", ("const", 0.9), ("tanh", x))),
    "asinsqrt": lambda x: ("asinsqrt", ("add", ("const", 0.05), ("mul", ("const", 0.9), ("sigmoid", x)))),
    "step": lambda x: ("step", ("add", x, ("const", 0.3719))),
    "sign": lambda x: ("sign", ("sub", x, ("const", 0.2917))),
    "pow": lambda x: ("pow", ("add", ("abs", x), ("const", 0.5)), 1.5),
    "cube": lambda x: ("pow", ("tanh", x), 3.0),
    "pow-negative": lambda x: ("pow", ("add", ("abs", x), ("const", 0.5)), -2.0),
}
BINARY: dict[str, Callable[[Tree, Tree], Tree]] = {
    "add": lambda x, y: ("add", x, y),
    "sub": lambda x, y: ("sub", x, y),
    "mul": lambda x, y: ("mul", x, y),
    "div": lambda x, y: ("div", x, ("add", ("const", 1.0), ("abs", y))),
    "div-const": lambda x, y: ("div", x, ("const", 3.0)),
    "rdiv": lambda x, y: ("div", ("const", 2.0), ("add", ("const", 1.0), ("square", y))),
    "maximum": lambda x, y: ("maximum", x, ("sub", y, ("const", 0.1377))),
    "minimum": lambda x, y: ("minimum", x, ("add", y, ("const", 0.1753))),
    "power": lambda x, y: ("power", ("add", ("abs", x), ("const", 0.5)), ("tanh", y)),
    "power-of-constant": lambda x, y: ("power", ("const", 1.7), ("tanh", y)),
    "remainder": lambda x, y: (
        "mul",
        ("mod", ("add", ("mul", ("const", 0.01), ("tanh", x)), ("const", 5.3)), ("const", 2.0)),
        ("tanh", y),
    ),
    "clamp": lambda x, y: ("minimum", ("maximum", x, ("const", -0.71)), ("const", 1.31)),
}
COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")


@dataclass
class Trees:
    """Draws trees; captured tensors are entered into ``leaves``."""

    pick: random.Random
    sizes: tuple[int, int, int, int]
    d: int
    dtype: str
    leaves: dict[str, Leaf]
    layouts: tuple[str, ...]
    words: frozenset[str]  # words to leave out
    pool: list[Tree] = field(default_factory=list)

    def chance(self, n: int) -> bool:
        return self.pick.randrange(n) == 0

    def captured(self, axes: str, tail: tuple[int, ...] = (), kind: str = "normal", dtype: str = "") -> Tree:
        """A new captured tensor with index axes ``axes`` and feature or table extents ``tail``."""
        name = f"c{len(self.leaves)}"
        shape = (*(self.sizes["bhij".index(c)] for c in axes), *tail)
        if not dtype:
            dtype = self.pick.choice([self.dtype, self.dtype, self.dtype, "float64", "float32"])
        grad = dtype.startswith(("float", "bfloat")) and not self.chance(4)
        self.leaves[name] = Leaf(shape, dtype, kind, self.pick.choice(self.layouts), grad)
        return ("cap", name, axes + ("d", "de")[len(tail) - 1] if tail else axes)

    def index(self) -> Tree:
        return ("index", self.pick.choice("bhijij"))

    def whole(self, depth: int) -> Tree:
        """An integer, exact in every dtype."""
        n = self.pick.randrange(7 if depth else 3)
        if n == 0:
            return self.index()
        if n == 1:
            return ("sub", ("index", "i"), ("index", "j"))
        if n == 2:
            axes = self.pick.choice(("i", "j", "bi", "bj", "h", ""))
            return self.captured(axes, kind="small-integers", dtype=self.pick.choice(("int64", "int64", "int32")))
        if n == 3:
            return ("abs", self.whole(depth - 1))
        if n == 4:
            return ("mul", ("const", self.pick.choice((2, 3, -1, 4))), self.whole(depth - 1))
        if n == 5 and "mod" not in self.words:
            return (self.pick.choice(("mod", "floordiv")), self.whole(depth - 1), ("const", self.pick.choice((2, 3))))
        return (self.pick.choice(("add", "sub")), self.whole(depth - 1), self.whole(depth - 1))

    def truth(self, depth: int, indices_only: bool = False) -> Tree:
        n = self.pick.randrange(6 if depth else 2)
        if n == 2:
            return ("not", self.truth(depth - 1, indices_only))
        if n in (3, 4):
            return (("and", "or")[n - 3], self.truth(depth - 1, indices_only), self.truth(depth - 1, indices_only))
        word = self.pick.choice(COMPARE)
        if indices_only or n == 0 or not depth:
            side = self._whole_of_indices if indices_only else self.whole
            other = ("const", self.pick.randrange(-2, 6)) if self.chance(2) else side(1)
            left = side(1 if depth else 0)
            if self.chance(3):  # as numbers: quarters are exact
                left, other = ("mul", ("const", 0.25), left), ("mul", ("const", 0.5), other)
            return (word, left, other)
        return (self.pick.choice(COMPARE[:4]), self.number(depth - 1), ("const", 0.2113))

    def _whole_of_indices(self, depth: int) -> Tree:
        n = self.pick.randrange(6 if depth else 2)
        if n == 0:
            return ("index", self.pick.choice("bhij"))
        if n == 1:
            return ("sub", ("index", "i"), ("index", "j"))
        if n == 2:
            return ("abs", self._whole_of_indices(depth - 1))
        if n == 3:
            return ("mul", ("const", self.pick.choice((2, 3, -2))), self._whole_of_indices(depth - 1))
        if n == 4 and "mod" not in self.words:
            return (
                self.pick.choice(("mod", "floordiv")),
                self._whole_of_indices(depth - 1),
                ("const", self.pick.choice((2, 3))),
            )
        return (self.pick.choice(("add", "sub")), self._whole_of_indices(depth - 1), self._whole_of_indices(depth - 1))

    def number(self, depth: int) -> Tree:
        """A number per pair, query, key or none."""
        if self.pool and self.chance(8):
            return self.pick.choice(self.pool)
        tree = self._number(depth)
        self.pool.append(tree)
        return tree

    def _number(self, depth: int) -> Tree:
        n = self.pick.randrange(14 if depth else 7)
        if n in (0, 1):
            return ("mul", ("const", self.d**-0.5), ("dot", self.vector(depth), self.vector(depth)))
        if n == 2:
            return ("mul", ("const", 1 / self.d), ("sum", self.vector(depth)))
        if n == 3:
            return ("item", self.vector(depth), self.pick.randrange(self.d))
        if n == 4:
            return self.captured(self.pick.choice(NUMBER_AXES))
        if n == 5:
            return ("mul", ("const", self.pick.choice((0.125, -0.0625))), self.whole(1))
        if n == 6:
            return self._read()
        if n == 7 and "where" not in self.words:
            return ("where", self.truth(depth - 1), self.number(depth - 1), self.number(depth - 1))
        if n == 8 and "floor" not in self.words:
            quarter = ("add", ("mul", ("const", 0.25), self.whole(0)), ("const", 0.125))
            return ("mul", ("const", 0.25), ("floor", quarter))
        if n == 9:
            name = ("norm",) if "norm" not in self.words else ("sqrt", "square")
            v = ("add", self.vector(depth - 1), ("const", 0.3))
            if name == ("norm",):
                return ("mul", ("const", self.d**-0.5), ("norm", v))
            return ("sqrt", ("add", ("const", 0.01), ("mul", ("const", 1 / self.d), ("sum", ("square", v)))))
        if n == 13:
            return self._extreme(depth)
        if n == 10:
            return self._unary(self.number(depth - 1))
        return self._binary(self.number(depth - 1), self.number(depth - 1))

    def _extreme(self, depth: int) -> Tree:
        """The mean, largest or smallest entry of a vector whose entries differ."""
        word = self.pick.choice(("mean", "amax", "amin"))
        if word == "mean":
            return ("mean", self.vector(depth - 1))
        spread = self.captured(self.pick.choice(("", "h", "j")), (self.d,))
        return (word, ("add", spread, ("tanh", self.vector(depth - 1))))

    def _read(self) -> Tree:
        """An entry of a table, at a whole position or one that rounds without doubt."""
        axes = self.pick.choice(("", "h", "b", "bh"))
        tail = (self.pick.randrange(1, 8),) if not self.chance(3) else (self.pick.randrange(1, 5),) * 2
        _, name, _ = self.captured(axes, tail)
        positions = []
        for _ in tail:
            p = self.whole(1)
            if self.chance(3):
                p = ("add", ("mul", ("const", 0.25), p), ("const", 0.0625))
            elif self.chance(4):  # halves are rounded to the even neighbour
                p = ("mul", ("const", 0.5), p)
            positions.append(p)
        return ("lookup", name, axes + ("t", "tu")[len(tail) - 1], *positions)

    def _unary(self, x: Tree) -> Tree:
        return UNARY[self.pick.choice([w for w in UNARY if w not in self.words])](x)

    def _binary(self, x: Tree, y: Tree) -> Tree:
        return BINARY[self.pick.choice([w for w in BINARY if w not in self.words])](x, y)

    def vector(self, depth: int) -> Tree:
        n = self.pick.randrange(12 if depth else 5)
        if n < 2:
            return ("q",)
        if n < 4:
            return ("k",)
        if n == 4:
            return self.captured(self.pick.choice(VECTOR_AXES), (self.d,))
        if n == 5:
            return (self.pick.choice(("sub", "add", "mul")), ("q",), ("k",))
        if n == 6:
            return self._unary(self.vector(depth - 1))
        if n == 7:
            return ("mul", self.number(depth - 1), self.vector(depth - 1))
        if n == 8 and "where" not in self.words:
            return ("where", self.truth(depth - 1), self.vector(depth - 1), self.vector(depth - 1))
        if n == 9:
            return self._linear(self.vector(depth - 1))
        return self._binary(self.vector(depth - 1), self.vector(depth - 1))

    def _linear(self, x: Tree) -> Tree:
        """Maps that mix channels; words that only compilers write are among them."""
        n = self.pick.randrange(8)
        if n == 0:
            return ("eta", x)
        if n == 1 and self.d % 2 == 0:
            theta = self.captured(self.pick.choice(("", "h", "i", "j", "bj")), (self.d // 2,))
            return ("rotate", x, theta, self.pick.choice(("half", "pairs")))
        if n in (2, 3):
            m = self.captured(self.pick.choice(("", "h", "i", "bhj")), (self.d, self.d))
            return ("mul", ("const", 0.5), (("matvec", "tmatvec")[n - 2], m, x))
        if n == 4:
            wide = self.dtype if "16" not in self.dtype else "float32"  # orthogonal to the digits of scores
            m = self.captured(self.pick.choice(("", "h", "i", "j")), (self.d, self.d), "orthogonal", wide)
            self.leaves[m[1]] = replace(self.leaves[m[1]], layout="contiguous", grad=False)
            return (self.pick.choice(("turn", "unturn")), m, x)
        if n == 5 and "outer" not in self.words:
            row = self.pick.choice((("q",), ("k",)))
            return ("mul", ("const", 1 / self.d), ("matvec", ("outer", ("tanh", row), row), x))
        if n == 6 and "append" not in self.words:
            return ("init", ("append", ("tanh", x), ("const", 0.5)))
        if n == 7:
            return ("embed", ("item", x, self.pick.randrange(self.d)), ("q",), self.pick.randrange(self.d))
        return ("eta", x)
