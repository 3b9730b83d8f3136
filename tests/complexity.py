"""`python -m tests.complexity`, run by `make lint`: the functions of fastft that have too many branches, or silence."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from radon.visitors import ComplexityVisitor, Function

PACKAGE = Path(__file__).parents[1] / "fastft"
MOST = 15


def too_complex(package: Path) -> list[str]:
    """Each function of `package`, methods and inner ones included, of a cyclomatic complexity above MOST."""
    found = []
    for path in sorted(package.rglob("*.py")):
        visitor = ComplexityVisitor.from_code(path.read_text(encoding="utf-8"))
        methods = [method for owner in visitor.classes for method in owner.methods]
        found += [
            f"{path.relative_to(package)}:{function.lineno}: {function.name} has a complexity of {function.complexity}"
            for function in _with_inner([*visitor.functions, *methods])
            if function.complexity > MOST
        ]
    return found


def _with_inner(functions: Iterable[Function]) -> Iterable[Function]:
    for function in functions:
        yield function
        yield from _with_inner(function.closures)


if __name__ == "__main__":
    lines = too_complex(PACKAGE)
    print(*lines, sep="\n", end="\n" * bool(lines))
    sys.exit(f"the limit is {MOST}: split what is above" if lines else 0)
