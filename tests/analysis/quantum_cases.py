"""States, channels and Hamiltonians that the tests of the quantum family draw."""

import numpy as np
import torch
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**31)


def vector(seed: int, *shape: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return torch.from_numpy(x / np.linalg.norm(x, axis=-1, keepdims=True))


def density(seed: int, d: int, rank: int | None = None, batch: tuple[int, ...] = ()) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    shape = (*batch, d, rank or d)
    x = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    rho = x @ x.conj().swapaxes(-1, -2)
    return torch.from_numpy(rho / np.trace(rho, axis1=-2, axis2=-1)[..., None, None])


def hermitian(seed: int, d: int, batch: tuple[int, ...] = ()) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*batch, d, d)) + 1j * rng.standard_normal((*batch, d, d))
    return torch.from_numpy((x + x.conj().swapaxes(-1, -2)) / 2)


def unitary(seed: int, d: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(rng.standard_normal((d, d)) + 1j * rng.standard_normal((d, d)))
    return torch.from_numpy(q * (r.diagonal() / abs(r.diagonal())))


def channel(seed: int, d: int, count: int = 3) -> torch.Tensor:
    """Kraus operators (count, d, d): blocks of an isometry."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((count * d, d)) + 1j * rng.standard_normal((count * d, d)))
    return torch.from_numpy(q.reshape(count, d, d))


def law(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1])
