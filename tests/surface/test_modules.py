"""What can be imported is what is said: names, docstrings, and nothing else."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import retinue

SOURCE = Path(inspect.getfile(retinue)).parent
FILES = sorted(SOURCE.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def test_the_package_gives_every_name_it_lists() -> None:
    given = {one: getattr(retinue, one) for one in retinue.__all__}

    assert sorted(given) == sorted(dir(retinue))
    assert [one for one, value in given.items() if value is None] == []


def test_the_package_lists_what_type_checkers_are_told() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    told = {
        alias.name
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert sorted(told - {"Any"}) == sorted(set(retinue.__all__) - {"__version__"})


def test_importing_the_package_loads_nothing_else_of_it() -> None:
    code = "import retinue, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert [module for module in loaded.stdout.split() if module.startswith("retinue.")] == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_module_says_what_it_is_for_and_every_public_thing_what_it_gives(path: Path) -> None:
    tree = ast.parse(path.read_text())

    assert ast.get_docstring(tree), "a module's first line says what it is for"
    assert silent(tree) == []


def silent(tree: ast.Module) -> list[str]:
    """Public classes, functions and methods without a docstring. What a contract describes is described there; a
    test's name is its claim; what overrides a library's method does what that says."""
    missing = []
    for node in public(tree.body):
        if ast.get_docstring(node) is None:
            missing.append(node.name)
        if isinstance(node, ast.ClassDef) and not foreign(node):
            missing += [
                f"{node.name}.{method.name}"
                for method in public(node.body)
                if ast.get_docstring(method) is None and method.name not in described()
            ]
    return missing


def public(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """What people may use of a module or class."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            marks = {ast.unparse(mark).partition("(")[0] for mark in node.decorator_list}
            if not node.name.startswith(("_", "test_")) and not marks & {"overload", "pytest.fixture"}:
                yield node


def foreign(node: ast.ClassDef) -> bool:
    """Whether a class is a special kind of one that is not ours."""
    plain = {"Protocol", "Generic", "Exception", "msgspec.Struct", "NamedTuple", "StrEnum"}
    bases = {ast.unparse(base).partition("[")[0] for base in node.bases} - plain
    return any(base not in classes() or foreign(classes()[base]) for base in bases)


@cache
def classes() -> dict[str, ast.ClassDef]:
    return {one.name: one for tree in trees() for one in ast.walk(tree) if isinstance(one, ast.ClassDef)}


@cache
def described() -> frozenset[str]:
    """Names of methods that some class of ours describes."""
    return frozenset(
        method.name
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for method in public(node.body)
        if ast.get_docstring(method)
    )


@cache
def trees() -> tuple[ast.Module, ...]:
    return tuple(ast.parse(path.read_text()) for path in FILES)


def test_no_shipped_file_names_somebodys_machine() -> None:
    found = {
        name(path): re.findall(r"(?<![\w.])/(?:work|home|root|Users)/\w+", path.read_text())
        for path in SOURCE.rglob("*")
        if path.suffix in (".py", ".sql")
    }

    assert {file: paths for file, paths in found.items() if paths} == {}
