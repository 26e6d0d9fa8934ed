"""Analytical passes: invariants of attention patterns and of the IR, each a library of plain functions on arrays."""
