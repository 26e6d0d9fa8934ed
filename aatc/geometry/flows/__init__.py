"""Flows of metrics, and diffusion on what they leave."""
