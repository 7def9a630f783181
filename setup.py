"""Which folders are packages; everything else is in pyproject.toml.

The workflow files lie in a folder of their own, where they are read, and inside the package in a
wheel, where `kronos_qlib.plugin.workflows.shipped` finds them. In a clone that is installed as
editable it takes the folder itself.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["kronos_qlib*"]), "kronos_qlib.workflows"],
    package_dir={"kronos_qlib.workflows": "workflows"},
)
