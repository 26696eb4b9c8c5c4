"""Builds the C++ part against the headers of jaxlib and of the packaged oneDNN."""

from importlib import metadata
from pathlib import Path

import jaxlib
from setuptools import Extension, setup


def installed(package: str, name: str) -> Path:
    """A file that a package installed, wherever pip put it."""
    return next(Path(p.locate()).resolve() for p in metadata.files(package) if p.name == name)


headers = installed("onednn-devel-cpu-gomp", "dnnl.hpp").parent
library = installed("onednn-cpu-gomp", "libdnnl.so.3")
here = Path("market_jax_onednn")

setup(
    ext_modules=[
        Extension(
            "market_jax_onednn._library",
            sorted(map(str, here.glob("*.cc"))),
            depends=sorted(map(str, here.glob("*.h"))),
            include_dirs=[str(Path(jaxlib.__file__).parent / "include"), str(headers)],
            extra_compile_args=["-std=c++17", "-O2", "-Wall", "-Wno-psabi", "-fopenmp"],
            extra_link_args=[str(library), "-fopenmp"],
        )
    ]
)
