"""The README's figures of native kernels, written from a result of ``make bench``.

    python -m bench.readme               # from the latest result
    python -m bench.readme FILE.json     # from this one

What stands between the two comments in the README is replaced; the result is kept beside the others as
``published.json``, so that every figure in the README can be looked up.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.native.bounds import FORWARD, TITLES, length_of

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results"
PUBLISHED = RESULTS / "published.json"
BEGIN = "<!-- bench: written by make bench-readme from bench/results/published.json -->"
END = "<!-- bench: end -->"

_HEADS = (
    "forward, n 2048", "against SDPA", "must be", "a core busy", "share of the multiply-add rate", "torch code",
    "`torch.compile` of the formula",
)  # fmt: skip
#: Rows besides the table of kinds. Of several, the one furthest from its bound is shown.
_OTHERS = (
    ("training/", "forward and backward"),
    ("share/backward", "dot product, backward: share of the multiply-add rate"),
    ("bf16/", "bfloat16, dot product, forward"),
    ("small/", "n 16 to 128, any kind without pairwise channels: above SDPA's call"),
    ("small-busy/", "the same, a core busy: median of a call"),
    ("slowest/", "a core busy: slowest of 20 calls"),
    ("windows/", "256 windows of 49 tokens, relative bias and mask"),
    ("decoding/", "1 query, 8192 keys, 32/8 heads of 128"),
    (r"masks/.*causal", "n 8192, causal"),
    (r"masks/.*window", "n 8192, window of 512 keys"),
    (r"memory/(?!.*-backward)", "peak memory above inputs and outputs, n 8192, forward"),
    (r"memory/.*-backward", "with backward"),
    ("compile/kernel", "compiling one kernel"),
    ("compile/model", "four-layer model, first call"),
    ("compile/second", "the same in a second process"),
    ("avx2/", "forward with AVX2 alone"),
    ("growth/calls", "10,000 calls: growth of memory"),
)


def text(result: dict[str, Any]) -> str:
    """The figures as markdown."""
    rows = {row["name"]: row for row in result["rows"]}
    device = result["device"]
    head = (
        f"{device['processor']}, {device['isa']}, {device['threads']} threads; torch {device['torch']}, LLVM "
        f"{device['llvm']}. Batch 1, 8 heads of width 64, float32; ratios of minima of "
        f"{result['settings']['runs']} runs in turns, with a core busy those of medians of 20."
    )
    parts = [head, "\n".join(_kinds(rows)), "\n".join(_others(rows))]
    return "\n\n".join(filter(None, parts))


def _kinds(rows: dict[str, Any]) -> list[str]:
    lines = [
        f"| {' | '.join(_HEADS)} |",
        f"| {' | '.join(['---'] * len(_HEADS))} |",
    ]
    for kind in FORWARD:
        row = rows.get(f"forward/{kind}")
        if row is None or row["measured"] is None:
            continue
        title = TITLES[kind] + ("" if length_of(kind) == 2048 else f", n {length_of(kind)}")
        busy = rows.get(f"busy/{kind}", {}).get("measured")
        share = re.search(r"share of the rate ([\d.]+)", row["note"])
        cells = [
            title,
            f"{row['measured']:.2f}×{_marked(row)}",
            _bound(row),
            "" if busy is None else f"{busy:.2f}×",
            share[1] if share else "",
            *(_over_sdpa(row, who) for who in ("torch code", "torch.compile")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def _over_sdpa(row: dict[str, Any], who: str) -> str:
    least = {name: min(figure["values"]) for name, figure in row["figures"].items()}
    return f"{least[who] / least['SDPA']:.2f}×" if who in least and "SDPA" in least else ""


def _others(rows: dict[str, Any]) -> list[str]:
    lines = ["| | measured | must be |", "| --- | --- | --- |"]
    for pattern, title in _OTHERS:
        worst = _worst(row for name, row in rows.items() if re.match(pattern, name))
        if worst is not None:
            kind = worst["name"].partition("/")[2].removesuffix("-backward").removesuffix("-causal")
            several = sum(bool(re.match(pattern, name)) for name in rows) > 1
            which = f" ({TITLES[kind.removesuffix('-window').removesuffix('-training')]})" if several else ""
            lines.append(
                f"| {title} | {worst['measured']:.3g} {worst['unit']}{which}{_marked(worst)} | {_bound(worst)} |"
            )
    return lines if len(lines) > 2 else []


def _worst(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The one that is furthest beyond its bound, or nearest to it."""

    def beyond(row: dict[str, Any]) -> float:
        ratio = float(row["measured"]) / float(row["bound"])
        return -ratio if row["at_least"] else ratio

    return max((row for row in rows if row["measured"] is not None), key=beyond, default=None)


def _bound(row: dict[str, Any]) -> str:
    return f"{'≥' if row['at_least'] else '≤'} {row['bound']:g}"


def _marked(row: dict[str, Any]) -> str:
    return "" if row["met"] else ", not met"


def written(page: str, result: dict[str, Any]) -> str:
    """A page with its figures replaced. Raises ValueError if it has no place for them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for figures: {BEGIN} and {END}")
    return f"{before}{begin}\n{text(result)}\n{end}{after}"


def main(arguments: Sequence[str]) -> None:
    found = sorted(RESULTS.glob("native-*.json"))
    if not arguments and not found:
        raise SystemExit("there is no result yet: run make bench")
    source = Path(arguments[0]) if arguments else found[-1]
    result = json.loads(source.read_text("utf-8"))
    README.write_text(written(README.read_text("utf-8"), result), "utf-8")
    if source.resolve() != PUBLISHED:
        PUBLISHED.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(f"figures of {source} are in {README.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
