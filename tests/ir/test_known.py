"""What is known to be sound hides no fault that comes later."""

import pytest

from aatc.ir.core import Op
from aatc.ir.errors import VerifyError
from aatc.ir.known import Known, frozen, key_of_function
from aatc.ir.parser import parse
from aatc.ir.types import INT, TensorType
from tests.ir.samples import SAMPLES


def is_sound(module, known=None):
    try:
        module.verify(known)
    except VerifyError:
        return False
    return True


def changes(op: Op):
    """(undo, what) after each of many changes of an operation in place, most of them wrong."""
    for name, value in list(op.attrs.items()):
        others = [None, "nonsense", -1, (), [value]]
        if type(value) is int:
            others += [float(value), bool(value), value + 1]
        if isinstance(value, tuple):
            others += [value[:-1], (*value, True)]
        for other in others:
            op.attrs[name] = other
            yield name
        del op.attrs[name]
        yield name
        op.attrs[name] = value
    op.attrs["unheard_of"] = 1
    yield "unheard_of"
    del op.attrs["unheard_of"]
    for v in (*op.results, *op.operands):
        was = v.type
        for other in (INT, TensorType.of("f64", [3])):
            v.type = other
            yield v
        v.type = was
    if op.operands:
        last = op.operands.pop()
        yield "an operand less"
        op.operands += [last, last]
        yield "an operand more"
        op.operands.pop()


@pytest.mark.parametrize("text", SAMPLES.values(), ids=SAMPLES)
def test_a_fault_is_found_by_who_knows_the_sound_program(text):
    module, known = parse(text), Known()
    module.verify(known)
    found = 0
    for op in list(module.walk()):
        for what in changes(op):
            fresh = is_sound(module)
            assert is_sound(module, known) == fresh, f"{op.name}: {what}"
            found += not fresh
        assert is_sound(module, known)
    assert found > 20


def test_other_dimensions_are_another_question():
    text = "dims {N in [1, 9]}\n\ngeo.func @main(%x: f32[N]) {\n  %y = torch.call(%x) "
    module, known = parse(text + '{target = "aten.relu.default", args = [#0]} : f32[N]\n  geo.return(%y)\n}\n'), Known()
    module.verify(known)
    del module.dims["N"]
    with pytest.raises(VerifyError, match="dimension N"):
        module.verify(known)


def test_what_may_change_is_not_remembered():
    assert frozen((1, ("a", None, 2.0)))
    assert not frozen([1]) and not frozen(({},))
    module = parse(
        'geo.func @main(%x: f32[4]) {\n  %y = torch.call(%x) {target = "aten.relu.default", args = [#0]} : f32[4]\n'
        "  geo.return(%y)\n}\n"
    )
    known = Known()
    call = module.entry.body.ops[0]
    call.attrs["args"] = (call.attrs["args"][0], given := [])
    module.verify(known)
    given.append(object())
    with pytest.raises(VerifyError, match="cannot stand in an attribute"):
        module.verify(known)


FUNCTION = """tile.func @f(%a: f32[1,4], %b: f32[1,4]) {
  %x = tile.token(%a) {program = fn(p: f[bhi]) => p, axes = "bhi", sizes = [1, 1, 4, 4], flat = true} : f32[1,4]
  tile.return(%x)
}
"""


def test_functions_are_the_same_only_if_they_are_wired_the_same():
    func = parse(FUNCTION).funcs["f"]
    token, end = func.body.ops
    same = key_of_function(func)
    assert same == key_of_function(func) is not None
    for other in func.args:
        end.operands = [other]
        assert key_of_function(func) != same
    end.operands = [token.result]
    assert key_of_function(func) == same
    func.body.ops.reverse()
    assert key_of_function(func) is None
