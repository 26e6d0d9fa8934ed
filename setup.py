"""Lists what the wheel installs: every package below the folders that pyproject.toml maps into ``aatc``."""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
roots = tomllib.loads((here / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-dir"]
packages = {f"{name}.{sub}" for name, folder in roots.items() for sub in find_packages(str(here / folder))}

setup(packages=sorted(packages | set(roots)))
