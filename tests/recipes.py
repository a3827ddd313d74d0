"""Recipes of the tests' own."""

from pathlib import Path

# Runs on the hand-written environments.
BASICS = str(Path(__file__).parent / "basics.toml")
