"""Dynamical systems: Hamiltonian, reaction and diffusion, their bifurcations and control."""
