"""The command line: ``aatc opt``, ``dump``, ``profile``, ``run``, ``tune``, ``analyze``, ``devices``.

IR texts go in and out as such, so that commands can be joined by pipes; everything else goes to standard
error. Exit codes: 0 done, 1 it failed, 2 the command was misused.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from aatc.ir.core import Module

app = typer.Typer(
    name="aatc", help="The Adaptive Attention Tiling Compiler.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip

FileArgument = Annotated[str, typer.Argument(help="A file with IR text; - reads standard input.", metavar="[FILE|-]")]
PipelineOption = Annotated[
    str, typer.Option("--pipeline", "-p", help="Passes in order, as canonicalize,simplify-score; see --list.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of the random inputs.", min=0, max=2**63 - 1)]


def main(argv: list[str] | None = None) -> NoReturn:
    """The entry point. Errors of aatc go to standard error as a message, without a traceback."""
    from aatc.errors import AatcError

    try:
        app(args=argv, prog_name="aatc")
    except AatcError as error:
        _fail(f"{_kind(error)}: {error}")
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        _fail(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
    raise SystemExit(0)


def _kind(error: Exception) -> str:
    name = type(error).__name__.removesuffix("Error")
    return f"{name.lower()} error" if name not in ("Aatc", "NotRun") else "error"


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(1)


def _read(file: str) -> str:
    try:
        if file != "-":
            return Path(file).read_text("utf-8")
        raw = getattr(sys.stdin, "buffer", None)
        return sys.stdin.read() if raw is None else str(raw.read(), "utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        _fail(f"error: {'standard input' if file == '-' else file} is not UTF-8 text")


def _parse(file: str) -> Module:
    from aatc.errors import AatcError
    from aatc.ir.parser import parse

    text = _read(file)
    try:
        return parse(text)
    except AatcError as error:
        _fail(f"{'<stdin>' if file == '-' else file}: {_kind(error)}: {error}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


# --- opt ---------------------------------------------------------------------------------------------------
@app.command()
def opt(
    file: FileArgument = "-",
    pipeline: PipelineOption = "",
    timing: Annotated[bool, typer.Option("--timing", help="Report time and rewrites of every pass.")] = False,
    print_after_all: Annotated[
        bool, typer.Option("--print-after-all", help="Print the IR after every pass to standard error.")
    ] = False,
    verify_each: Annotated[bool, typer.Option(help="Check the IR after every pass.")] = True,
    verify: Annotated[
        str, typer.Option(help="ir, or numerics: also compare what the interpreter gives before and after every pass.")
    ] = "ir",
    backend: Annotated[str, typer.Option(help="Backend whose device the passes compile for.")] = "cpu",
    schedule: Annotated[
        str, typer.Option(help="A file of schedules, with lines like attend0.forward: split(i, 64) split(j, 256).")
    ] = "",
    print_schedule: Annotated[
        bool, typer.Option("--print-schedule", help="Print the schedules of the result, as such a file, in its place.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the passes and their options.")] = False,
) -> None:
    """Run passes over an IR text; the result goes to standard output."""
    from aatc import backends, passes
    from aatc.ir.schedule_file import write_schedules

    if list_:
        print(_pass_list())
        return
    module = _parse(file)
    chosen = passes.Pipeline.parse(pipeline) if pipeline.strip() else passes.Pipeline(())
    if schedule:
        chosen = passes.with_schedules(chosen, _read(schedule))
    after = (lambda n, name, m: _say(f"// after {n}, {name}\n{m}")) if print_after_all else None
    target = backends.get(backend).target()
    result = chosen.run(module, target=target, verify_each=verify_each, on_stage=after, verify=verify)
    if timing:
        _timing(result.report)
    for report in result.report:
        for note in report.notes:
            _say(f"{report.name}: note: {note}")
    if print_schedule:
        sys.stdout.write(write_schedules(result.module))
    else:
        print(result.module)


def _pass_list() -> str:
    import dataclasses

    from aatc.passes.base import REGISTRY

    lines = []
    for name, cls in sorted(REGISTRY.items()):
        options = [_option(f) for f in dataclasses.fields(cls) if f.init]
        doc = (cls.__doc__ or "").strip().splitlines()
        lines.append(f"{name}{{{' '.join(options)}}}" if options else name)
        lines += [f"    {doc[0]}"] if doc and not doc[0].startswith(f"{cls.__name__}(") else []
    return "\n".join(lines)


def _option(f: Any) -> str:
    """``name=default`` of a pass's option, ``name`` if it has none."""
    import dataclasses

    from aatc.passes.base import default_of
    from aatc.passes.options import option_text

    name, default = f.name.replace("_", "-"), default_of(f)
    return name if default is dataclasses.MISSING else f"{name}={option_text(default)}"


def _timing(report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head, side in (("pass", "left"), ("time", "right"), ("rewrites", "left")):
        table.add_column(head, justify=side)  # type: ignore[arg-type]
    from aatc.frontend.page import milliseconds, rewrites

    for p in report:
        table.add_row(p.name, milliseconds(p.seconds), rewrites(p.rewrites))
    table.add_row("total", milliseconds(sum(p.seconds for p in report)), "")
    Console(stderr=True, markup=False, highlight=False).print(table)


# --- dump --------------------------------------------------------------------------------------------------
@app.command()
def dump(
    source: Annotated[str, typer.Argument(help="module:factory; factory() gives a model, or (model, example_args).")],
    stage: Annotated[
        str,
        typer.Option(
            help="import, the name of a pass, final, code; of native kernels llvm or asm, of Vulkan glsl or wgsl."
        ),
    ] = "final",
    inputs: Annotated[str, typer.Option(help="Shapes of random inputs, as 2x16x64,2x16.")] = "",
    pipeline: PipelineOption = "",
    backend: Annotated[str, typer.Option(help="Backend to compile for.")] = "auto",
    dynamic: Annotated[bool, typer.Option(help="Keep sizes beyond the first symbolic.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Also report what was done, to standard error.")] = False,
) -> None:
    """Compile a PyTorch model and print its IR at a stage, or its generated code."""
    import torch

    import aatc
    from aatc import backends
    from aatc.errors import UnsupportedError

    model, args = _model(source, inputs)
    compiled = aatc.compile(model, backend=backend, dynamic=dynamic, passes=pipeline or None, fallback=False)
    with torch.no_grad():
        compiled(*args)
    if not compiled.graphs:
        raise UnsupportedError("the model has nothing to compile: no tensor operation was recorded")
    text = _listed(compiled, backends.get(backend), stage) or str(compiled.ir(stage))
    if explain:
        _say(str(compiled.explain()))
    print(text)


_LISTINGS = ("llvm", "asm")


def _listed(compiled: Any, backend: Any, stage: str) -> str:
    """Generated code: all of it, or the kernels' in a form that the backend lists; else nothing."""
    if stage == "code":
        return str(compiled.code)
    if stage not in (*backend.listings, *_LISTINGS):
        return ""
    kernels = [a["kernel"] for g in compiled.graphs if g.program is not None for a in g.program.attentions]
    mark = "#" if stage == "asm" else ";"
    funcs = {id(f): f for k in kernels for v in k.versions for f in (v.forward_func, v.backward_func)}
    return "\n".join(f"{mark} @{f.name}\n{backend.listing(f, stage)}" for f in funcs.values()) or f"{mark} no kernel"


# --- profile -----------------------------------------------------------------------------------------------
@app.command()
def profile(
    source: Annotated[str, typer.Argument(help="module:factory; factory() gives a model, or (model, example_args).")],
    inputs: Annotated[str, typer.Option(help="Shapes of random inputs, as 2x16x64,2x16.")] = "",
    backend: Annotated[str, typer.Option(help="Backend to compile for.")] = "native",
    runs: Annotated[int, typer.Option(min=1, help="Runs that are counted.")] = 5,
    backward: Annotated[bool, typer.Option("--backward", help="Also the gradients of the outputs' sum.")] = False,
) -> None:
    """Run a model with kernels that count, and print where their time goes, by tile operation."""
    import aatc

    model, args = _model(source, inputs)
    print(aatc.compile(model, backend=backend, fallback=False).profile(args, runs=runs, backward=backward))


def _model(source: str, inputs: str) -> tuple[Any, tuple]:
    """The model of ``module:factory`` and its arguments: random ones of the shapes ``inputs``, or its examples."""
    import torch

    model, args = _load(source)
    if inputs:
        args = tuple(torch.randn(s) for s in _shapes(inputs))
    if args is None:
        raise typer.BadParameter("the factory gives no example arguments: say --inputs 2x16x64", param_hint="--inputs")
    return model, args


def _load(source: str) -> tuple[Any, tuple | None]:
    """The model of ``module:factory`` and its example arguments; modules of the current folder come first."""
    import importlib

    module, _, factory = source.partition(":")
    if not module or not factory:
        raise typer.BadParameter(f"{source!r} is not module:factory", param_hint="SOURCE")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise typer.BadParameter(f"there is no module {module!r} here", param_hint="SOURCE") from None
        raise
    for part in factory.split("."):
        if not hasattr(found, part):
            raise typer.BadParameter(f"{module} has no {factory!r}", param_hint="SOURCE")
        found = getattr(found, part)
    import torch

    made = found if isinstance(found, torch.nn.Module) else found()  # type: ignore[operator]
    if isinstance(made, tuple):
        model, args = made[0], made[1]
        return model, tuple(args) if isinstance(args, (list, tuple)) else (args,)
    return made, None


def _shapes(text: str) -> list[tuple[int, ...]]:
    try:
        return [tuple(int(n) for n in shape.split("x")) for shape in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of shapes like 2x16x64,2x16", param_hint="--inputs") from None


# --- run ---------------------------------------------------------------------------------------------------
@app.command()
def run(
    file: FileArgument,
    seed: SeedOption = 0,
    inputs: Annotated[str, typer.Option(help="A file of torch.save with a list of inputs.")] = "",
    sizes: Annotated[str, typer.Option(help="Sizes of symbolic dimensions, as N=64,M=32.")] = "",
    pipeline: PipelineOption = "",
    output: Annotated[str, typer.Option("--output", "-o", help="Save the outputs there with torch.save.")] = "",
) -> None:
    """Run an IR text in the reference interpreter, on random inputs unless some are given."""
    import torch

    from aatc import passes
    from aatc.frontend.replay import random_inputs, reference_run

    module = _parse(file)
    if pipeline.strip():
        module = passes.Pipeline.parse(pipeline).run(module).module
    if inputs:
        try:
            values = list(torch.load(inputs, weights_only=True))
        except FileNotFoundError:
            raise
        except Exception as error:
            _fail(f"error: {inputs} is not a saved list of tensors: {error}")
    else:
        values = random_inputs(module, seed=seed, sizes=_sizes(sizes))
    torch.manual_seed(seed)
    results = reference_run(module, values)
    if output:
        try:
            torch.save(results, output)
        except RuntimeError as error:  # torch's word for a folder that is not there
            _fail(f"error: {output} cannot be written: {error}")
    for n, (result, kind) in enumerate(zip(results, module.entry.result_types, strict=True)):
        print(f"{n}: {kind}  {_summary(result)}")


def _sizes(text: str) -> dict[str, int]:
    try:
        return {n.strip(): int(v) for n, _, v in (item.partition("=") for item in text.split(",") if item.strip())}
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list like N=64,M=32", param_hint="--sizes") from None


def _summary(value: Any) -> str:
    import torch

    if not isinstance(value, torch.Tensor):
        return str(value)
    if value.numel() <= 8:
        return str(value.tolist())
    if not value.dtype.is_floating_point:
        return f"shape {tuple(value.shape)}"
    x = value.double()
    bad = int((~x.isfinite()).sum())
    finite = f"mean {x.mean():.6g}, standard deviation {x.std():.6g}, least {x.min():.6g}, largest {x.max():.6g}"
    return f"shape {tuple(value.shape)}, {finite}" + (f", {bad} not finite" if bad else "")


# --- tune --------------------------------------------------------------------------------------------------
@app.command()
def tune(
    source: Annotated[
        str, typer.Argument(help="module:factory; factory() gives a model, or (model, example_args).")
    ] = "",
    inputs: Annotated[str, typer.Option(help="Shapes of random inputs, as 2x16x64,2x16.")] = "",
    backend: Annotated[str, typer.Option(help="Backend to measure for.")] = "auto",
    effort: Annotated[str, typer.Option(help="quick, what the cost model finds best, or full, everything.")] = "quick",
    budget: Annotated[float, typer.Option(help="Seconds for all together; 0 for 30 or 300, by effort.")] = 0.0,
    dynamic: Annotated[bool, typer.Option(help="Keep sizes beyond the first symbolic.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure what is kept already, too.")] = False,
    seed: SeedOption = 0,
    export: Annotated[str, typer.Option(help="Write the schedules there as JSON.")] = "",
    import_: Annotated[str, typer.Option("--import", help="Keep the schedules of such a file, measuring none.")] = "",
    list_: Annotated[bool, typer.Option("--list", help="List what is kept.")] = False,
) -> None:
    """Measure schedules for a model's attentions on this device, and keep the best."""
    import torch

    from aatc import tuning
    from aatc.tuning import store

    if bool(source) + bool(import_) + list_ != 1:
        raise typer.BadParameter("say one of: a model, --import FILE, --list", param_hint="SOURCE")
    if import_:
        found = tuning.load(import_)
        for entry in found:
            store.put(entry)
    elif list_:
        found = tuning.Schedules(tuple(tuning.kept()))
    else:
        torch.manual_seed(seed)
        model, args = _model(source, inputs)
        found = tuning.tune(
            model, args, backend=backend, effort=effort, budget=budget or None, dynamic=dynamic, again=again
        )
    if export:
        found.export(export)
    print(found)


# --- analyze -----------------------------------------------------------------------------------------------
@app.command()
def analyze(
    source: Annotated[str, typer.Argument(help="module:factory; factory() gives a model, or (model, example_args).")],
    inputs: Annotated[str, typer.Option(help="Shapes of random inputs, as 2x16x64,2x16.")] = "",
    passes: Annotated[str, typer.Option(help="Families of analyses, joined by commas; all by default.")] = "",
    budget: Annotated[float, typer.Option(help="Seconds that all of it may take; 0 for no limit.")] = 0.0,
    batch: Annotated[str, typer.Option(help="Batch elements to study, as 0,3.")] = "0",
    seed: SeedOption = 0,
    capture: Annotated[str, typer.Option(help="auto, compiled (aatc.attend) or torch (ordinary attention).")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for every finding.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page with pictures to this file.")] = None,
    save: Annotated[Path | None, typer.Option(help="Also write the findings to this npz file.")] = None,
) -> None:
    """Run a model once and report the invariants of its attention patterns and of its IR."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from aatc.analysis.run import FAMILIES
    from aatc.analysis.run import analyze as study

    torch.manual_seed(seed)
    model, args = _model(source, inputs)
    chosen = [p.strip() for p in passes.split(",") if p.strip()] or list(FAMILIES)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks = {name: bar.add_task(name, total=None) for name in chosen}

        def progress(family: str, done: int, total: int) -> None:
            bar.update(tasks[family], completed=done, total=total)

        limit = budget or None
        model = model.eval() if isinstance(model, torch.nn.Module) else model
        found = study(model, args, chosen, budget=limit, batch=_positions(batch), capture=capture, progress=progress)
    if html is not None:
        found.html(html, source)
    if save is not None:
        found.save(save)
    print(found.to_json() if json else found)


def _positions(text: str) -> list[int]:
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers like 0,3", param_hint="--batch") from None


# --- devices -----------------------------------------------------------------------------------------------
@app.command()
def devices() -> None:
    """List what each backend sees on this machine."""
    from aatc import backends

    for n, device in enumerate(backends.devices()):
        typer.echo(("" if n == 0 else "\n") + "\n".join(_lines(device)))


def _lines(device: dict[str, Any]) -> Iterator[str]:
    """Backend and name, what is known of the device, and a line for each group of facts."""
    yield f"{device['backend']:8} {device['name']}"
    rest = {k: v for k, v in device.items() if k not in ("backend", "name")}
    plain = {k: v for k, v in rest.items() if not isinstance(v, dict)}
    groups = [("", plain), *((f"{k}: ", v) for k, v in rest.items() if isinstance(v, dict))]
    for head, facts in groups:
        if facts:
            text = head + ", ".join(f"{k} {_cell(v)}" for k, v in facts.items())
            yield textwrap.fill(text, 100, initial_indent=" " * 9, subsequent_indent=" " * 11)


def _cell(value: Any) -> str:
    """A triple of extents as 4x2x1, words one after the other."""
    if isinstance(value, (tuple, list)):
        return ("x" if all(isinstance(v, int) for v in value) else " ").join(map(str, value)) or "none"
    return str(value)
