"""Pairs of a tile that are computed again one by one."""
