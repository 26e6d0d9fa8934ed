"""Bundles, their connections, and transport along them."""
