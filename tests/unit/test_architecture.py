"""The rules of the house that import-linter cannot say (its contracts are in pyproject.toml, run by ``make check``)."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_FILE = 300

#: Libraries that reach outside the process.
IO_LIBRARIES = frozenset(
    {
        "aiohttp", "aiokafka", "asyncpg", "fastapi", "faust", "httpx", "minio", "psutil", "requests", "socket",
        "sqlite3", "subprocess", "urllib3", "uvicorn",
    }
)  # fmt: skip

#: Decisions that must stay pure, whatever their docstrings say.
PURE = frozenset(
    {
        "flywheel.errors", "flywheel.events", "flywheel.ids", "flywheel.messages", "flywheel.naming", "flywheel.topics",
        "flywheel.trajectory", "flywheel.windows", "flywheel.tools.checks", "flywheel.tools.generator",
    }
)  # fmt: skip

#: Modules with these names, and these folders, may talk to Postgres or the object store.
STORAGE_NAMES = frozenset({"store", "objects", "registry", "postgres", "s3"})
STORAGE_FOLDERS = ("flywheel.storage.", "flywheel.stream.", "deploy.")

SQL_CALLS = frozenset({"fetch", "fetchrow", "fetchval", "executemany", "copy_records_to_table", "copy_to_table"})

#: Where reading the environment is allowed: entry points, the command line, agents (and what the SDK offers them as
#: ``from_env``), the local stack, which hands it on to its children, and the one function in settings.
ENVIRONMENT = re.compile(
    r"(^|\.)(__main__|worker|cli(\..*)?|commands)$|^flywheel\.settings$|^flywheel\.sdk\.|^examples\.|^deploy\.local\."
)


@dataclass(frozen=True, slots=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.tree) or ""

    def imports(self) -> Iterator[str]:
        """Yield what it imports at run time, fully dotted; what stands under TYPE_CHECKING is for the checker alone."""
        skipped = {
            id(inner)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for child in node.body
            for inner in ast.walk(child)
        }
        for node in ast.walk(self.tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def modules() -> dict[str, Module]:
    found: dict[str, Module] = {}
    for base, folder in ((ROOT / "shared", "flywheel"), (ROOT, "services"), (ROOT, "deploy"), (ROOT, "examples")):
        for path in sorted((base / folder).rglob("*.py")):
            name = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
            found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    assert len(found) > 50
    return found


def module_of(imported: str) -> str | None:
    """Return the project module that ``imported`` (a module, or a name in one) stands in."""
    while imported:
        if imported in modules():
            return imported
        imported = imported.rpartition(".")[0]
    return None


def reached(start: str) -> dict[str, list[str]]:
    """Return every I/O library that ``start`` reaches through the project's own modules, with the way there."""
    found: dict[str, list[str]] = {}
    ways: dict[str, list[str]] = {start: [start]}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        for imported in modules()[name].imports():
            top = imported.partition(".")[0]
            if top in IO_LIBRARIES or imported.startswith(("urllib.request", "http.client", "http.server")):
                found.setdefault(top, ways[name])
            if (inner := module_of(imported)) and inner not in ways:
                ways[inner] = [*ways[name], inner]
                waiting.append(inner)
    return found


def pure_modules() -> list[str]:
    """Those that must be pure, and those whose docstring promises it."""
    promised = {m.name for m in modules().values() if re.search(r"\bPure\b|\bpurely\b", m.docstring)}
    return sorted(PURE | promised)


@pytest.mark.parametrize("name", pure_modules())
def test_a_pure_module_reaches_no_io_library(name: str) -> None:
    assert reached(name) == {}


def test_only_entry_points_and_agents_read_the_environment() -> None:
    offenders = [
        f"{module.path.relative_to(ROOT)}:{node.lineno}"
        for module in modules().values()
        if not ENVIRONMENT.search(module.name)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.environb")
    ]
    assert offenders == []


def test_only_entry_points_and_agents_load_settings() -> None:
    offenders = [
        f"{module.path.relative_to(ROOT)}:{node.lineno}"
        for module in modules().values()
        if not ENVIRONMENT.search(module.name)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and re.fullmatch(r"\w*(Settings|Connections)\.load", ast.unparse(node.func))
    ]
    assert offenders == []


def test_nobody_hands_on_where_kafka_is_without_how_it_is_entered() -> None:
    """Servers alone, as text, are a Kafka that lets anybody in. From settings, clients are given a Cluster."""
    offenders = [
        f"{module.path.relative_to(ROOT)}:{node.lineno}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr == "kafka"
        if re.search(r"connections$|Connections\.load\(\)$", ast.unparse(node.value))
    ]
    assert offenders == []


def storage_offenders(offends: Callable[[Module], bool]) -> list[str]:
    others = (
        m
        for m in modules().values()
        if not m.name.startswith(STORAGE_FOLDERS) and m.name.rpartition(".")[2] not in STORAGE_NAMES
    )
    return [module.name for module in others if offends(module)]


def test_only_storage_modules_query_the_database() -> None:
    def queries(module: Module) -> bool:
        return any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in SQL_CALLS
            and re.search(r"(conn|connection|pool|db)$", ast.unparse(node.func.value))
            for node in ast.walk(module.tree)
        )

    assert storage_offenders(queries) == []


def test_only_storage_modules_import_the_s3_client() -> None:
    assert storage_offenders(lambda m: any(i.partition(".")[0] == "minio" for i in m.imports())) == []


def python_files() -> list[Path]:
    folders = ("shared", "services", "deploy", "examples", "tests", "bench")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_files_stay_short_enough_to_read() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in python_files()}
    assert {path: n for path, n in lengths.items() if n > LONGEST_FILE} == {}


def test_every_module_says_what_it_promises() -> None:
    assert [m.name for m in modules().values() if not m.docstring and m.path.stat().st_size > 0] == []
