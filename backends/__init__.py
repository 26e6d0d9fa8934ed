"""Backends: what turns tile programs into something that runs, and where to find them."""

from aatc.backends.contract import Backend
from aatc.backends.found import automatic, devices, get, load, names, pipeline, register
from aatc.backends.lowerings import Lowerings
from aatc.backends.program import Beside, Program

__all__ = [
    "Backend",
    "Beside",
    "Lowerings",
    "Program",
    "automatic",
    "devices",
    "get",
    "load",
    "names",
    "pipeline",
    "register",
]
