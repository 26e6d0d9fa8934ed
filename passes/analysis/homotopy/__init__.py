"""Homotopy: groups, paths, simplicial sets and model structures of attention patterns."""
