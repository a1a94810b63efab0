"""The only metadata. Lower bounds, so that versions which are already there (Colab's, say) stay."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
README = (HERE / "README.md").read_text(encoding="utf8")
REPOSITORY = re.search(r"https://github\.com/[\w.-]+/[\w.-]+", README)[0]
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "eva_utils/__init__.py").read_text(encoding="utf8"), re.M)[1]


def absolute(link: re.Match) -> str:
    """A relative link as the package page needs it: with the repository's address."""
    return f"]({REPOSITORY}/{'raw' if link[1].endswith('.png') else 'blob'}/main/{link[1]})"


setup(
    name="eva_utils",
    version=VERSION,
    description="See super-convergence for yourself: CIFAR-10 in 24 epochs of a one-cycle policy",
    long_description=re.sub(r"\]\((?!https?:|#)([^)]+)\)", absolute, README),
    long_description_content_type="text/markdown",
    license="MIT",
    url=REPOSITORY,
    project_urls={"Documentation": f"{REPOSITORY}/tree/main/docs", "Issues": f"{REPOSITORY}/issues"},
    keywords="super-convergence, learning rate, range test, one-cycle, CIFAR-10, Grad-CAM",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=["eva_utils", "eva_utils.plots"],
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "torch-lr-finder>=0.2.2",
        "albumentations>=2.0.8,<3",
        "numpy>=1.26",
        "matplotlib>=3.8",
        "seaborn>=0.13",
        "grad-cam>=1.5.4",
        "scikit-learn>=1.3",
        "pillow>=10",
        "tqdm>=4.66",
        "filelock>=3.16",
    ],
    extras_require={
        "study": ["prodigyopt>=1.1", "schedulefree>=1.4"],  # benchmarks/lr_finder.py
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "nbclient>=0.10",
            "onnx",
            "onnxscript",
            "ipykernel>=6.29",
            "packaging",
        ],
    },
    entry_points={"console_scripts": ["eva-utils = eva_utils.cli:main"]},
)
