"""Every rule of scores: a proof over its domain, an instance that is rewritten, and instances that are not."""

import itertools
import re
from pathlib import Path

import mpmath
import pytest

from aatc.ir.parser import parse_program
from aatc.ir.score import Expr, call, param, postorder, substitute
from aatc.ir.score.functions import FUNCTIONS
from aatc.passes.certificate import verify
from aatc.passes.fuse_attention import exp_of
from aatc.passes.normal_form import Normaliser
from aatc.passes.rules import ALWAYS, NAMES, Condition, Rule
from aatc.passes.score_rules import LINEAR, SCORE_RULES
from tests.compiler.rule_proofs import EDGES, Numbers, Refuted, prove, value

RULES = pytest.mark.parametrize("rule", SCORE_RULES.rules, ids=lambda r: f"{r.name}: {r.before}")
#: Rules that a pass applies after the normal form is made.
AFTERWARDS = ("drop-row-constant", "bounded-score", "exp-acosh")


# --- instances ---------------------------------------------------------------------------------------------
def name(text: str) -> Expr:
    dtype, axes = NAMES[text][0].rstrip("]").split("[")
    return param(text, axes, dtype)


def choices(text: str) -> list[Expr]:
    """Expressions that ``text`` may stand for: any of its kind, ones that are never negative, ones of one token."""
    axes = NAMES[text][0][2:-1]
    whole = param(f"{text}_", axes)
    if whole.rank == 2 or text in ("t", "tq"):
        return [whole]
    token = param(f"{text}_", axes.replace("i" if text == "v" else "j", ""))
    constant = param(f"{text}_", axes.replace("i", "").replace("j", ""))
    return [whole, call("square", whole), call("square", token), -call("square", whole), constant]


def bindings(rule: Rule, holds: bool) -> dict[str, Expr] | None:
    """Expressions for the names of ``rule`` for which its condition holds, or does not."""
    names = [p.name for p in postorder(rule.pattern) if p.fn == "param"]
    for combination in itertools.product(*map(choices, names)):
        bound = dict(zip(names, combination, strict=True))
        if rule.condition.holds(bound) == holds:
            return bound
    return None


def instance(e: Expr, bound: dict[str, Expr]) -> Expr:
    return substitute(e, {name(n): x for n, x in bound.items()}, smart=False)


def find(e: Expr, rule: Rule, given: bool = True):
    return SCORE_RULES.find(e, rule.name, given=(rule.given,) if given and rule.given else ())


def violations(rule: Rule) -> list[Expr]:
    """Expressions that differ from an instance in one thing that the rule asks for."""
    good = bindings(rule, True)
    assert good is not None
    found = []
    for n in good:
        axes = NAMES[n][0][2:-1]
        features = axes.lstrip("bhij")
        if axes != f"bhij{features}":  # what a name must not depend on
            found.append(instance(rule.pattern, good | {n: param(f"{n}_", f"bhij{features}")}))
        if _count(rule.pattern, n) > 1:
            found.append(instance(_one_other(rule.pattern, n), good))
    if rule.condition is not ALWAYS:
        bad = bindings(rule, False)
        assert bad is not None, f"the condition of {rule.name} refuses nothing"
        found.append(instance(rule.pattern, bad))
    if not found:
        found.append(instance(_neighbour(rule.pattern), good))
    return [e for e in found if e is not instance(rule.pattern, good)]


def _count(e: Expr, text: str) -> int:
    return sum(_count(a, text) for a in e.args) + (e.fn == "param" and e.name == text)


def _one_other(pattern: Expr, text: str) -> Expr:
    """``pattern`` with another expression at the first of the places where ``text`` stands."""
    other = [param(f"{text}_other", NAMES[text][0][2:-1])]

    def walk(e: Expr) -> Expr:
        if e.fn == "param" and e.name == text and other:
            return other.pop()
        return Expr(e.fn, tuple(map(walk, e.args)), e.attrs) if e.args else e

    return walk(pattern)


def _neighbour(pattern: Expr) -> Expr:
    """``pattern`` with another word in its depth."""
    e = next(e for e in postorder(pattern) if e.args and FUNCTIONS[e.fn].kind == "pointwise")
    other = call({1: "tanh", 2: "maximum"}[len(e.args)], *e.args)
    return substitute(pattern, {e: other}, smart=False)


# --- proofs ------------------------------------------------------------------------------------------------
@RULES
def test_both_sides_are_the_same_over_the_whole_domain(rule):
    proof = prove(rule)
    assert proof.samples >= 100
    assert proof.algebra, "sympy does not decide this rule: name it here, with the reason, and let the samples count"


@pytest.mark.parametrize(
    "lie",
    [
        Rule("root of a square, without a sign", "sqrt(x * x)", "x"),
        Rule("square of a root, without a sign", "square(sqrt(x))", "x"),
        Rule("roots, without a sign", "sum(sqrt(u * v))", "dot(sqrt(u), sqrt(v))"),
        Rule("logarithm of signed data", "log(x * r)", "log(x) + log(r)"),
        Rule("distance without a mask", "abs(i - j)", "i - j"),
        Rule("distance of the other triangle", "abs(i - j)", "j - i", domain=("j <= i",)),
        Rule("a matrix for a frame", "dot(matvec(m, u), matvec(m, v))", "dot(u, v)"),
        Rule("a matrix for its transpose", "dot(matvec(mq, k), q)", "dot(k, matvec(mq, q))"),
        Rule("an angle for its negative", "dot(rotate[half](k, tq), q)", "dot(k, rotate[half](q, tq))"),
        Rule("another pairing of channels", "rotate[half](u + v, t)", "rotate[half](u, t) + rotate[pairs](v, t)"),
        Rule("sums that are not one channel's", "sum(u * v)", "sum(u) * sum(v)"),
        Rule("a sign", "dot(u - v, w)", "dot(u, w) + dot(v, w)"),
        Rule("the first channel", "dot(eta(k), q)", "dot(k, q)"),
        Rule("different means", "q - k", "(q - centre(q)) - (k - centre(k))"),
        Rule("what softmax sees", "x * r", "x", relation="row-constant"),
        Rule("a key's number", "x + s", "x", relation="row-constant"),
        Rule("a wrong power", "exp(-2.0 * acosh(x))", "expacosh(x)"),
        Rule("a wrong branch", "exp(acosh(x))", "x + sqrt(x * x - 1.0)"),
        Rule("small numbers only", "exp(x)", "1.0 + x"),
        Rule("large numbers only", "sqrt(x * x + 1.0)", "abs(x)"),
        Rule("all but one point", "x / x", "x / x + (1.0 - abs(x - 1.0) / abs(x - 1.0))"),
        Rule("the last of forty digits", "x", "x * 1.0000000000000002"),
    ],
    ids=lambda r: r.name,
)
def test_a_false_rule_is_refuted(lie):
    with pytest.raises(Refuted):
        prove(lie)


@RULES
def test_an_instance_is_rewritten_to_what_the_rule_says(rule):
    bound = bindings(rule, True)
    assert bound is not None, f"nothing meets the condition of {rule.name}"
    found = find(instance(rule.pattern, bound), rule)
    assert found is not None and found.rule is rule
    assert found.result() is substitute(rule.result, {name(n): x for n, x in bound.items()})


@RULES
def test_what_breaks_a_condition_is_left_alone(rule):
    for e in violations(rule):
        assert find(e, rule) is None, f"{e} is no instance of {rule}"
    if rule.given:
        bound = bindings(rule, True)
        assert find(instance(rule.pattern, bound), rule, given=False) is None


@pytest.mark.parametrize(
    "rule", [r for r in SCORE_RULES.rules if r.counted and r.name not in AFTERWARDS], ids=lambda r: r.before
)
def test_the_normal_form_uses_the_rule_once_and_keeps_the_value(rule):
    lengths = rule.name == "isometry" and rule.pattern.args[0].fn in ("add", "sub")  # where differences stay whole
    bound = bindings(rule, True) | ({"u": param("u_", "bhjd")} if lengths else {})
    e = instance(rule.pattern, bound)
    whole = call("dot", e, param("other", "bhid")) if e.rank else e
    if rule.name == "adjoint":  # some maps move only where that may make two key vectors the same
        whole = whole + call("dot", param("other", "bhid"), param("another", "bhjd"))
    rules = Normaliser(causal=rule.given == "causal", split=rule.given == "split", whole=lengths)
    made = rules.number(whole)
    assert rules.count[rule.name] == 1
    i, j = (Expr("index", (), (c,)) for c in "ij")
    witness = ("equal-where", j <= i, j <= i, whole, made) if rule.given == "causal" else ("equal", whole, made)
    vectors = {p.name for p in postorder(whole) if p.fn == "param" and p.rank == 1}
    widths = tuple((n, (2 if n.startswith("t") else 4,)) for n in sorted(vectors))
    assert verify((*witness, widths) if widths else witness) <= 1e-9


@pytest.mark.parametrize("scale, word", [(-1.0, "expacosh"), (-0.5, "sqrt"), (-2.0, "square")])
def test_the_exponential_of_a_distance_has_a_closed_form(scale, word):
    distance = call("acosh", param("q", "bhid") @ param("k", "bhjd"))
    for score in (
        scale * distance,
        -(-scale * distance),
        call("neg", call("mul", param("a", "") * 0 - scale, distance)),
    ):
        weight, rule = exp_of(score)
        if any(p.name == "a" for p in postorder(score) if p.fn == "param"):
            assert rule == "bounded-score"
        else:
            assert (weight.fn, rule) == (word, "exp-acosh")
    assert exp_of(-3.0 * distance)[1] == exp_of(distance)[1] == "bounded-score"


# --- conditions --------------------------------------------------------------------------------------------
def _numbers(x: Expr, y: Expr) -> list[Expr]:
    square, exp, sqrt = call("square", x), call("exp", y), call("sqrt", y)
    plain = [x, -x, x * x, x * y, abs(x), square, -square, exp, sqrt, call("acosh", x), call("expacosh", x)]
    sums = [square + exp, square - exp, exp - 1.0, square + 0.5, square - 0.5]
    return [*plain, *sums, square * exp, square * x, exp / square, exp / x, sqrt * abs(y)]


@pytest.mark.parametrize("rule", [r for r in SCORE_RULES.rules if r.condition.domain], ids=lambda r: r.before)
def test_where_a_condition_holds_its_domain_is_true(rule):
    """Conditions judge forms; the values of a form that they accept are in the domain, whatever is put in."""
    x, y = param("x", "bhi"), param("y", "bhi")
    judged = {True: 0, False: 0}
    for n in {d.split()[0] for d in rule.condition.domain}:
        rank = name(n).rank
        made = [(e, e) for e in _numbers(x, y)]
        if rank:
            u, v = param("x", "bhid"), param("y", "bhid")
            made = list(zip(_numbers(u, v), _numbers(x, y), strict=True))
        good = bindings(rule, True)
        for e, pointwise in made:
            holds = rule.condition.holds(good | {n: e})
            judged[holds] += 1
            if holds:
                for a, b in itertools.product((s * z for z in EDGES for s in (1, -1)), repeat=2):
                    with mpmath.workdps(60):
                        try:
                            assert value(pointwise, {"x": a, "y": b / 10**30}, Numbers(mpmath)) >= 0, str(e)
                        except ZeroDivisionError:
                            continue
    assert all(judged.values())


def test_every_linear_word_has_its_rules():
    for word in LINEAR:
        forms = [r for r in SCORE_RULES.rules if r.name == "linear" and r.pattern.fn == word]
        assert {r.pattern.args[LINEAR[word]].fn for r in forms} == {"add", "sub", "neg", "mul", "div"}
        assert any(r.name == "adjoint" and r.pattern.args[0].fn == word for r in SCORE_RULES.rules)


def test_what_the_passes_count_is_in_the_table():
    folder = Path(__file__).resolve().parents[2] / "passes"
    text = "".join((folder / f"{m}.py").read_text("utf-8") for m in ("normal_form", "simplify_score", "fuse_attention"))
    used = set(re.findall(r'(?:_use|rules\.count|self\.count)[\[(]"([a-z-]+)"', text))
    assert used and used <= set(SCORE_RULES.names)


@RULES
def test_a_rule_is_well_formed(rule):
    before, after = ({e.name for e in postorder(side) if e.fn == "param"} for side in (rule.pattern, rule.result))
    assert after <= before and rule.pattern.rank == rule.result.rank
    assert rule.head in ("", rule.pattern.fn)
    assert isinstance(rule.condition, Condition)


@RULES
def test_a_rule_means_what_its_text_means_in_the_score_language(rule):
    for text, read in ((rule.before, rule.pattern), (rule.after, rule.result)):
        named = ", ".join(f"{n}: {NAMES[n][0]}" for n in dict.fromkeys(re.findall(r"[a-z]\w*", text)) if n in NAMES)
        assert read is parse_program(f"({named}) => {text}").body
