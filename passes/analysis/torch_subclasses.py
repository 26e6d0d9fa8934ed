"""Lets classes of tensors be made while a dispatch mode is on.

A class that has no `__new__` of its own, as `torch.nn.attention.bias.CausalBias`, makes its memory by an operation,
which a dispatch mode sees as a plain tensor: PyTorch then refuses to make it one of that class.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


class _Makers:
    """Gives such classes a constructor that switches modes off, as long as somebody needs it. That of `torch.Tensor`
    itself stays: Dynamo knows it."""

    def __init__(self) -> None:
        self._users = 0
        self._lock = threading.Lock()
        self._given: list[Any] = []

    def __enter__(self) -> None:
        import torch.nn.attention.bias  # known before a model imports it while it runs

        with self._lock:
            self._users += 1
            for cls in torch.Tensor.__subclasses__():
                if cls.__new__ is torch.Tensor.__new__:
                    cls.__new__ = _make  # type: ignore[method-assign]
                    self._given.append(cls)

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._users -= 1
            while self._given and not self._users:
                del self._given.pop().__new__


def _make(cls: Any, *args: Any, **kwargs: Any) -> Any:
    with _disable_current_modes():
        return torch.Tensor.__new__(cls, *args, **kwargs)


makers = _Makers()
