"""Handwritten digits as probability distributions, and vectors carried round loops on curved surfaces.

An image is a distribution of ink over its pixels. Fisher–Rao's metric measures such distributions by how well samples
tell them apart; its geodesics are compared with straight lines, and its distance with Euclid's in a nearest-neighbour
classifier. Then a vector is carried round loops on a sphere, which turns it by the enclosed area, and along a geodesic
of a torus. Pictures are written to a folder.

    python examples/geodesics.py --output pictures
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from handwritten import Data, load
from rich.console import Console
from rich.table import Table
from torch import Tensor

from aatc.geometry import Simplex, Sphere
from aatc.geometry.bundles.bundle import holonomy_of_polygon
from aatc.geometry.manifolds.attention_geodesic import AttentionGeodesic, AttentionPath
from aatc.report import Surface, geodesic_figure, turning_angle
from aatc.report.canvas import MAP, new_figure

PAIRS = ((0, 1), (3, 8), (4, 9))
SMOOTH = 0.05  # ink added to every pixel, in the unit of the darkest: no pixel is impossible


def ink(images: Tensor) -> Tensor:
    """The ink of images (n, 8, 8) between −1 and 1 as rows (n, 64) between 0 and 1."""
    return images.flatten(1).double() / 2 + 0.5


def distributions(images: Tensor) -> Tensor:
    """The share of the ink that each pixel has."""
    shares = images + SMOOTH
    return shares / shares.sum(-1, keepdim=True)


def straight(start: Tensor, end: Tensor, times: Tensor) -> Tensor:
    """The mixtures of two distributions, (T, n)."""
    return torch.lerp(start, end, times[:, None])


def length(points: Tensor) -> float:
    """The Fisher–Rao length of a curve of distributions (T, n), as the sum of its chords."""
    return float(Simplex().dist(points[:-1], points[1:]).sum())


def compare_paths(images: Tensor, labels: Tensor, console: Console) -> AttentionPath:
    means = {digit: distributions(images[labels == digit]).mean(0) for pair in PAIRS for digit in pair}
    table = Table(title="from class mean to class mean, lengths in Fisher–Rao's metric")
    for column in ("digits", "geodesic", "straight line", "longer by", "farthest from the line"):
        table.add_column(column)
    for one, other in PAIRS:
        path = AttentionGeodesic().compute_path(means[one], means[other], steps=400)
        line = straight(means[one], means[other], path.times)
        shortest, longer = float(path.length), length(line)
        gap = float(Simplex().dist(path.points, line).max())
        table.add_row(
            f"{one} – {other}", f"{shortest:.4f}", f"{longer:.4f}", f"{longer / shortest - 1:.2%}", f"{gap:.4f}"
        )
    console.print(table)
    console.print("The geodesic is the shortest path. Class means are near in a space π wide, so mixtures lose little.")
    return AttentionGeodesic().compute_path(means[PAIRS[0][0]], means[PAIRS[0][1]], steps=6)


def nearest(train: Tensor, labels: Tensor, held: Tensor, truth: Tensor, metric: str) -> float:
    """The accuracy of the label of the nearest training image."""
    if metric == "Fisher–Rao":
        # 2√p lies on a sphere, where the nearest point has the largest product.
        near = (train.sqrt() @ held.sqrt().mT).argmax(0)
    else:
        near = torch.cdist(held, train).argmin(-1)
    return (labels[near] == truth).double().mean().item()


def classify(data: Data, few: list[int], console: Console) -> None:
    images, labels, held, truth = data
    table = Table(title=f"nearest neighbour among training images, accuracy on {len(truth)} held-out digits")
    for column in ("training images", "Fisher–Rao", "Euclid, distributions", "Euclid, pixels"):
        table.add_column(column)
    for count in few:
        train, names = images[:count], labels[:count]
        accuracies = (
            nearest(distributions(train), names, distributions(held), truth, "Fisher–Rao"),
            nearest(distributions(train), names, distributions(held), truth, "Euclid"),
            nearest(train, names, held, truth, "Euclid"),
        )
        table.add_row(str(count), *[f"{accuracy:.3f}" for accuracy in accuracies])
    console.print(table)


def circle(colatitude: float, steps: int) -> Tensor:
    """The circle of latitude, counterclockwise, in the chart of the sphere, (T, 2)."""
    around = torch.linspace(0, 2 * math.pi, steps + 1, dtype=torch.float64)
    return torch.stack((torch.full_like(around, colatitude), around), -1)


def carry_round(steps: int, console: Console) -> tuple[Surface, Tensor, Tensor]:
    """Holonomies of caps and of an octant, in a table; and the loop and frame of one cap for its picture."""
    sphere = Surface.sphere()
    table = Table(title="a vector carried round a loop on the unit sphere, in radians")
    for column in ("loop", "enclosed area", "turned by", "difference"):
        table.add_column(column)
    for degrees in (20, 40, 50):
        colatitude = math.radians(degrees)
        frame = torch.tensor([[1.0, 0.0], [0.0, 1 / math.sin(colatitude)]], dtype=torch.float64)

        def curve(t: Tensor, colatitude: float = colatitude) -> Tensor:
            return torch.stack((torch.full_like(t, colatitude), 2 * math.pi * t))

        carried = sphere.structure.parallel_transport(curve, frame, steps=steps)
        points = circle(colatitude, steps)
        area, angle = 2 * math.pi * (1 - math.cos(colatitude)), turning_angle(sphere, points, carried[:, 0])
        difference = math.remainder(angle - area, 2 * math.pi)
        table.add_row(f"circle, {degrees}° from the pole", f"{area:.6f}", f"{angle:.6f}", f"{difference:+.1e}")
    corners = torch.eye(3, dtype=torch.float64)
    matrix = holonomy_of_polygon(Sphere(), corners)
    angle = math.atan2(float(matrix[1, 0]), float(matrix[0, 0]))
    table.add_row("octant", f"{math.pi / 2:.6f}", f"{angle:.6f}", f"{angle - math.pi / 2:+.1e}")
    console.print(table)
    console.print("On a surface of curvature 1 the turn is the enclosed area (Gauss–Bonnet), up to full turns.")
    return sphere, points, carried


def path_figure(path: AttentionPath):
    """The geodesic above the mixtures, as images of ink."""
    figure = new_figure(1.5 * len(path.times), 3.6)
    rows = {"Fisher–Rao": path.points, "mixture": straight(path.points[0], path.points[-1], path.times)}
    top = float(path.points.max())
    grid = figure.subplots(2, len(path.times))
    for axes, (name, points) in zip(grid, rows.items()):
        for place, (panel, point) in enumerate(zip(axes, points)):
            image = panel.imshow(point.reshape(8, 8).numpy(), cmap=MAP, vmin=0, vmax=top)
            panel.set(xticks=[], yticks=[], title=f"t = {float(path.times[place]):.2f}")
        axes[0].set_ylabel(name)
    figure.colorbar(image, ax=grid, label="share of the ink")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("pictures"), help="the folder for pictures")
    parser.add_argument("--quick", action="store_true", help="coarser, for a first look")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    console, (images, labels, held, truth) = Console(), load()
    data = ink(images), labels, ink(held), truth
    steps = 64 if options.quick else 512

    path_figure(compare_paths(data[0], data[1], console)).savefig(options.output / "digit_geodesic.png", dpi=130)
    classify(data, [100, 300] if options.quick else [50, 100, 300, len(data[1])], console)
    sphere, points, carried = carry_round(steps, console)
    picture = geodesic_figure(points, sphere, frame=carried[:, :1], holonomy=True, title="circle 50° from the pole")
    picture.savefig(options.output / "sphere_holonomy.png", dpi=130)

    torus = Surface.torus()
    start = torch.tensor([0.6, 0.0], dtype=torch.float64)
    times = torch.linspace(0, 12, steps + 1, dtype=torch.float64)
    velocity = torch.tensor([1.0, 0.5], dtype=torch.float64)
    geodesic = torus.structure.geodesic_flow(start, velocity, times, method="rk4", steps=4)
    frame = torch.eye(2, dtype=torch.float64) / torus.structure.metric_tensor(start).diagonal().sqrt()[:, None]
    carried = torus.structure.parallel_transport(geodesic, frame)
    # An orthonormal frame at the start stays orthonormal: that is what a metric connection is.
    gram = torus.structure.inner(geodesic.points[-1], carried[-1, :, None], carried[-1, None])
    console.print(
        f"geodesic of a torus, length {float(geodesic.length()):.3f}: speed constant to "
        f"{float((geodesic.speed() / geodesic.speed()[0] - 1).abs().max()):.1e}, frame orthonormal to "
        f"{float((gram - torch.eye(2)).abs().max()):.1e}"
    )
    geodesic_figure(geodesic, torus, frame=carried, arrows=15, title="geodesic of a torus").savefig(
        options.output / "torus_geodesic.png", dpi=130
    )
    console.print(f"pictures: {', '.join(sorted(p.name for p in options.output.glob('*.png')))} in {options.output}")


if __name__ == "__main__":
    main()
