"""Manifolds in closed form, and Riemannian geometry of metrics given in charts."""
