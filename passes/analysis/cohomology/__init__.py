"""Cohomology, persistence and Hodge theory of attention patterns."""
