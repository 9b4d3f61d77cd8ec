"""Packages of the distribution; everything else is in setup.cfg."""

from setuptools import find_packages, setup

# The recipes lie beside the package in a checkout, and inside it in a wheel.
setup(
    packages=[*find_packages(include=["imbalance_vlm", "imbalance_vlm.*"]), "imbalance_vlm._recipes"],
    package_dir={"imbalance_vlm": "imbalance_vlm", "imbalance_vlm._recipes": "recipes"},
)
