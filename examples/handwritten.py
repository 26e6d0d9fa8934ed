"""The digits that scikit-learn ships, and one way to train a classifier of them, which the examples share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, RATE, NOISE = 64, 3e-3, 0.3
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def load() -> Data:
    """Training images ``(B, 8, 8)`` within ±1 and labels ``(B,)``, then the held-out quarter's."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)
    keep, held = train_test_split(range(len(labels)), test_size=0.25, stratify=digits.target, random_state=0)
    return images[keep], labels[keep], images[held], labels[held]


def steps(data: Data, epochs: int) -> int:
    """How many batches `fit` takes."""
    return epochs * (len(data[0]) // BATCH)


def fit(run: nn.Module, data: Data, epochs: int, step: Callable[[float], object]) -> None:
    """Trains ``run``, a model or its compiled form, on noisy images; ``step`` is told the loss of every batch."""
    images, labels = data[:2]
    optimizer = torch.optim.AdamW(run.parameters(), RATE, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps(data, epochs))
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for batch in order[: len(images) // BATCH * BATCH].split(BATCH):
            noisy = images[batch] + NOISE * torch.randn_like(images[batch])
            loss = F.cross_entropy(run(noisy), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step(loss.item())


@torch.no_grad()
def accuracy(run: nn.Module, data: Data) -> float:
    """The share of held-out images that are read rightly."""
    return (run(data[2]).argmax(-1) == data[3]).float().mean().item()
