"""Benchmarks of aatc, and the peers it is measured against."""
