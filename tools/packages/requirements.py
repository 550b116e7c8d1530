"""What pyproject.toml asks for, a requirement a line: the runtime and the extras that are named."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8"))[
    "project"
]
for extra in sys.argv[1:]:
    if extra not in project["optional-dependencies"]:
        sys.exit(f"pyproject.toml has no extra {extra}; it has {', '.join(project['optional-dependencies'])}")
wanted = [*project["dependencies"], *(r for e in sys.argv[1:] for r in project["optional-dependencies"][e])]
print("\n".join(dict.fromkeys(requirement.replace(" ", "") for requirement in wanted)))
