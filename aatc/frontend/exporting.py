"""`aatc.export`: a model as IR, without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from aatc.errors import AatcError, UnsupportedError
from aatc.frontend.importer import SMALL, import_graph

if TYPE_CHECKING:
    from aatc.ir.core import Module


def export(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Module:
    """The IR of ``model`` called with ``args``, verified, before any pass.

    The entry takes the model's parameters and buffers, in the order of ``named_parameters`` and
    ``named_buffers``, then ``args``. ``dynamic_shapes`` is that of `torch.export.export`; ``Dim("n", min=1)``
    keeps length one among the lengths. Raises UnsupportedError naming the model's source line.
    """
    from aatc.frontend import breaks, private_torch, states
    from aatc.frontend.compiled import _original

    original = _original(model)
    if not isinstance(original, torch.nn.Module):
        raise UnsupportedError("only modules can be exported", hint="wrap the function in a torch.nn.Module")
    if isinstance(args, torch.Tensor):
        raise UnsupportedError("args is a tensor", hint="hand in a tuple: export(model, (x,))")
    try:
        with private_torch.whole_stacks(), states.unchanged(original):
            program = torch.export.export(
                original, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
    except AatcError:
        raise
    except Exception as error:
        typed = breaks.as_error(error) or breaks.export_error(error)
        if typed is None:
            raise
        raise typed from error
    names, given = [], {}
    for spec in program.graph_signature.input_specs:
        names.append((spec.target or spec.arg.name).replace(".", "_"))
        tensor = program.constants.get(spec.target) if spec.target else None
        if spec.kind.name == "CONSTANT_TENSOR" and isinstance(tensor, torch.Tensor) and tensor.numel() <= SMALL:
            given[spec.arg.name] = tensor
    imported = import_graph(program.graph_module, names, given, program.range_constraints, kernels=False)
    if imported.constants:
        shapes = ", ".join(str(tuple(t.shape)) for t in imported.constants)
        raise UnsupportedError(
            f"the model holds constant tensors of shapes {shapes} that its IR cannot",
            hint="register them as buffers: register_buffer(name, tensor)",
        )
    return imported.module
