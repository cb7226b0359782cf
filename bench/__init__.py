"""The benchmark behind `fastconv bench`: layers of published networks, against what a user would otherwise run.

The folder lies beside the package and is installed as ``fastconv.bench`` (pyproject.toml), so its modules import each
other relatively. Nothing in here is imported by ``import fastconv``. ``gpu.py`` is a program of its own.
"""
