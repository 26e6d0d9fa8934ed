"""Backends: what turns tile programs into something that runs, and where to find them."""

from aatc.backends.contract import Backend, Program
from aatc.backends.found import devices, get, load, names, pipeline, register
from aatc.backends.lowerings import Lowerings

__all__ = ["Backend", "Lowerings", "Program", "devices", "get", "load", "names", "pipeline", "register"]
