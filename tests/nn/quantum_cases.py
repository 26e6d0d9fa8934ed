"""A small quantum attention, and its parts and output by hand, pair by pair."""

import torch

from aatc.nn import QuantumGeometricAttention

HIDDEN, HEADS, RANK, DIM = 12, 2, 2, 3


def made(num_layers=2, dropout=0.0, tile_size=4, seed=1, **options):
    torch.manual_seed(seed)
    return QuantumGeometricAttention(HIDDEN, HEADS, dropout, RANK, DIM, num_layers, tile_size, **options).double()


def tokens(b=2, n=6):
    return torch.randn(b, n, HIDDEN, dtype=torch.float64)


def complex_states(states):
    """States of any width, real parts first, as complex numbers."""
    half = states.shape[-1] // 2
    return torch.complex(states[..., :half], states[..., half:])


def overlaps(query, key):
    """⟨k_j|q_i⟩, (B, H, N, M)."""
    return torch.einsum("bhjc,bhic->bhij", complex_states(key).conj(), complex_states(query))


def squared_distances(query, key):
    return torch.acos(overlaps(query, key).abs().clamp(max=1)).square()


def weights_of(attention, query, key, scale=1.0, keep=None):
    beta = scale * attention.log_beta.exp()[:, None, None]
    scores = -beta * squared_distances(query, key)
    return (scores if keep is None else scores.masked_fill(~keep, -torch.inf)).softmax(-1)


def by_hand(attention, x, keep=None):
    """The module from its parameters, pair by pair, every state a list of complex amplitudes; ``keep`` (N, N)."""
    value_of = dict(attention.named_parameters())
    b, n, _ = x.shape

    def projected(name, size):
        y = x @ value_of[f"{name}.weight"].T + value_of[f"{name}.bias"]
        return y.reshape(b, n, HEADS, size).permute(0, 2, 1, 3)

    def field(places):
        kappa = value_of["field.growth"] @ value_of["field.directions"]
        rates = torch.complex(kappa, value_of["field.frequency"])
        grown = (torch.einsum("bhnd,had->bhna", places.to(rates), rates) + value_of["field.level"][:, None]).exp()
        return grown / grown.abs().square().sum(-1, keepdim=True).sqrt()

    def weights(one, other):
        overlap = torch.einsum("bhjc,bhic->bhij", other.conj(), one)
        sines = (1 - overlap.abs().square()).clamp(min=0)
        angles = torch.where(sines > 1e-14, torch.asin(torch.where(sines > 1e-14, sines, 0.5).sqrt()), 0)
        unnormalised = torch.exp(-value_of["log_beta"].exp()[:, None, None] * angles.square())
        if keep is not None:
            unnormalised = unnormalised * keep
        return overlap, unnormalised / unnormalised.sum(-1, keepdim=True)

    q, k = field(projected("query", DIM)), field(projected("key", DIM))
    v = complex_states(projected("value", 2 * HIDDEN // HEADS))
    v = v / v.abs().square().sum(-1, keepdim=True).sqrt()
    overlap, p = weights(q, k)
    u = sum((p * overlap)[..., j, None] * v[:, :, None, j] for j in range(n)).abs().square()
    _, heat = weights(k, k)
    step = value_of["flow_logit"].sigmoid()[:, None, None]
    for _ in range(attention.num_layers):
        u = (1 - step) * u + step * (heat @ u)
    merged = u.permute(0, 2, 1, 3).reshape(b, n, HIDDEN) * (HIDDEN // HEADS)
    return merged @ value_of["out.weight"].T + value_of["out.bias"]


def state_and_weights(attention, x):
    state = attention.prepare_attention_state(x)
    return state, weights_of(attention, state.query, state.key)
