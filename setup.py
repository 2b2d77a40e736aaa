"""Two source roots, one distribution: ``ptv2/`` and ``kernels/ptv2_kernels/``.

``kernels/`` is a folder of sources, never an import package: that name belongs
to Hugging Face's ``kernels``, which transformers imports.

The native CPU implementation is built against the torch that is there (``pip install
--no-build-isolation``), once for each instruction set; which of them runs is decided at import.
Without torch, without a compiler or with ``PTV2_BUILD_NATIVE=0`` the package installs without it.
"""

import os
import platform
import sys
from typing import Any

from setuptools import Extension, find_packages, setup

CSRC = "kernels/ptv2_kernels/csrc"
SOURCES = [f"{CSRC}/{name}.cpp" for name in ("amx", "backward", "forward", "operators", "pairs")]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
INSTRUCTION_SETS = {  # name: (at::vec's name, flags); on other processors only "default"
    "default": ("DEFAULT", ["-O2"]),  # -O3 spoils at::vec's plain C++
    "avx2": ("AVX2", ["-O3", *AVX2]),
    "avx512": ("AVX512", ["-O3", *AVX2, *(f"-mavx512{x}" for x in ("f", "bw", "dq", "vl"))]),
}


def say(message: str) -> None:
    print(f"ptv2: {message}; on a CPU the slower reference will be used", file=sys.stderr)


def native_build() -> dict[str, Any]:
    """Arguments of `setup` that build the native implementation, if it can be built."""
    if os.environ.get("PTV2_BUILD_NATIVE") == "0":
        say("PTV2_BUILD_NATIVE=0")
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except (ImportError, OSError) as error:
        say(f"no native build, for torch cannot be imported while installing ({error})")
        return {}

    class OptionalBuild(BuildExtension):  # type: ignore[misc]
        """A build that leaves out what fails."""

        def build_extension(self, extension: Extension) -> None:
            try:
                super().build_extension(extension)
            except (Exception, SystemExit) as error:
                say(f"the native build of {extension.name} failed ({error})")
                self.failed.append(extension)

        def build_extensions(self) -> None:
            self.failed: list[Extension] = []
            try:
                super().build_extensions()
            except (Exception, SystemExit) as error:
                say(f"the native build failed ({error})")
                self.failed = list(self.extensions)
            self.extensions = [x for x in self.extensions if x not in self.failed]

    major, minor = torch.__version__.split(".")[:2]
    x86 = platform.machine() in ("x86_64", "AMD64")
    extensions = [
        CppExtension(
            f"ptv2_kernels._native_{name}_torch{major}_{minor}",
            SOURCES,
            depends=[f"{CSRC}/{header}" for header in sorted(os.listdir(CSRC))],
            extra_compile_args=[
                *flags,
                "-g0",
                "-fopenmp",
                "-Wno-maybe-uninitialized",  # of undefined vectors in the compiler's own headers
                f"-DCPU_CAPABILITY={capability}",
                f"-DCPU_CAPABILITY_{capability}",
            ],
            extra_link_args=["-fopenmp"],
        )
        for name, (capability, flags) in INSTRUCTION_SETS.items()
        if x86 or name == "default"
    ]
    build = OptionalBuild.with_options(no_python_abi_suffix=True)
    return {"ext_modules": extensions, "cmdclass": {"build_ext": build}}


setup(
    packages=find_packages(include=["ptv2", "ptv2.*"]) + find_packages("kernels"),
    package_dir={"ptv2_kernels": "kernels/ptv2_kernels"},
    **native_build(),
)
