"""Two source roots, one distribution: ``ptv2/`` and ``kernels/ptv2_kernels/``.

``kernels/`` is a folder of sources, never an import package: that name belongs
to Hugging Face's ``kernels``, which transformers imports.
"""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["ptv2", "ptv2.*"]) + find_packages("kernels"),
    package_dir={"ptv2_kernels": "kernels/ptv2_kernels"},
)
