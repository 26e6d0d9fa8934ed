"""Arithmetic: heights, places, orbits and zeta functions."""
