"""The walls between the packages, as a function from a source tree to its breaches.

Works on the syntax tree alone, so that it sees imports that never run: relative ones, those inside functions and those
under TYPE_CHECKING. What it cannot see (a name built at run time) the tests at run time see. The rules are numbered as
in ARCHITECTURE.md; rule 0 forbids imports by computed names.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CONTEXTS = ("registry", "lifecycle", "inference", "observability")
CONTEXT_PACKAGES = frozenset(f"modelmora_{name}" for name in CONTEXTS)

PURE_FILES = frozenset(
    {"domain.py", "queue.py", "fairness.py", "scheduler.py", "eviction.py", "ledger.py", "energy.py"}
    | {"sharing.py", "cache.py", "prediction.py", "scaling.py", "placement.py", "leases.py", "known.py", "jobs.py"}
    | {"simulation.py", "servers.py", "tuning.py", "locks.py", "selection.py", "filters.py", "links.py"}
)
"""Files of a context that decide without a clock, IO or chance."""

HOT_FILES = frozenset({"queue.py", "fairness.py", "scheduler.py", "eviction.py", "ledger.py"})
"""Pure files on the request path: pydantic is too slow for them."""

IMPURE_STANDARD_LIBRARY = frozenset(
    [
        "asyncio",
        "concurrent",
        "ctypes",
        "fcntl",
        "ftplib",
        "glob",
        "http",
        "io",
        "logging",
        "mmap",
        "multiprocessing",
        "os",
        "pathlib",
        "queue",
        "random",
        "resource",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "socketserver",
        "sqlite3",
        "ssl",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
        "time",
        "urllib",
    ]
)
IMPURE_CALLS = frozenset({"open", "print", "input", "now", "utcnow", "today", "uuid1", "uuid4", "getrandom", "urandom"})

SQL = frozenset({"sqlalchemy", "alembic", "asyncpg", "psycopg", "psycopg2"})
GRPC_FILES = frozenset({"service.py", "main.py", "dispatcher.py"})
METERS = frozenset({"codecarbon", "pynvml"})
METER_FILES = frozenset({"energy.py", "devices.py"})

HEAVY_FAMILIES = {
    "torch": [
        "torch",
        "transformers",
        "sentence_transformers",
        "tokenizers",
        "safetensors",
        "accelerate",
        "peft",
        "torchvision",
        "torchaudio",
    ],
    "pillow": ["PIL"],
    "openvino": ["openvino", "optimum", "nncf"],
    "vllm": ["vllm"],
    "onnx": ["onnxruntime", "onnx"],
    "tabular": ["sklearn", "scipy", "pandas", "xgboost", "lightgbm"],
    "tensorflow": ["tensorflow", "keras", "jax", "flax"],
}
HEAVY = {module: family for family, modules in HEAVY_FAMILIES.items() for module in modules}

WORKER_MAY_IMPORT = (
    "google.protobuf",
    "modelmora.common.v1",
    "modelmora.errors",
    "modelmora.worker.v1",
    "modelmora_runtime.framing",
    "modelmora_worker",
)
SDK_MAY_IMPORT = frozenset({"google", "grpc", "modelmora", "numpy"})
"""numpy only where it is already there: the SDK returns arrays if it can."""

TABLES_OF_NAMES = frozenset({"services/modelmora_worker/engines/base.py", "services/modelmora_app/cli/__init__.py"})
"""The engine table, and the table of commands: the two files that import by a name from their own table."""


@dataclass(frozen=True)
class Breach:
    """One line of one file that goes through a wall."""

    rule: str
    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: wall {self.rule}: {self.what}"


@dataclass(frozen=True)
class Import:
    """A module that a line asks for, resolved to its absolute dotted name."""

    module: str
    line: int
    at_load: bool
    """True when it runs as the importing module is imported."""

    @property
    def top(self) -> str:
        return self.module.split(".", 1)[0]

    def below(self, package: str) -> bool:
        return self.module == package or self.module.startswith(package + ".")


def breaches(root: Path, files: Iterable[Path] | None = None) -> list[Breach]:
    """Every breach in `root/libs` and `root/services`, or in these files of them; generated code is exempt."""
    found: list[Breach] = []
    for file in source_files(root) if files is None else files:
        tree = ast.parse(file.read_text(), str(file))
        found.extend(_file_breaches(root, file, tree))
    return sorted(found, key=lambda breach: (breach.file, breach.line, breach.rule))


def source_files(root: Path) -> Iterator[Path]:
    """The hand-written Python files of the product."""
    for source_root in ("libs", "services"):
        for file in sorted((root / source_root).rglob("*.py")):
            if not file.name.endswith(("_pb2.py", "_pb2_grpc.py")) and "node_modules" not in file.parts:
                yield file


def imports(root: Path, file: Path, tree: ast.Module) -> Iterator[Import]:
    """Every import statement, wherever it stands, with relative names resolved."""
    relative = file.relative_to(root).with_suffix("")
    parts = relative.parts[1:]
    package = list(parts[:-1])
    inside_functions = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        at_load = id(node) not in inside_functions
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_load)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package[: len(package) - (node.level - 1)]
                base = ".".join([*anchor, *([base] if base else [])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}" if alias.name != "*" else base, node.lineno, at_load)


def _file_breaches(root: Path, file: Path, tree: ast.Module) -> Iterator[Breach]:
    path = PurePosixPath(file.relative_to(root).as_posix())
    package = path.parts[1]
    found = list(imports(root, file, tree))

    def breach(rule: str, line: int, what: str) -> Breach:
        return Breach(rule, str(path), line, what)

    for imported in found:
        yield from (breach(rule, imported.line, what) for rule, what in _import_breaches(path, package, imported))
    families = {HEAVY[imported.top]: imported.line for imported in found if imported.top in HEAVY}
    if len(families) > 1:
        yield breach("4", max(families.values()), f"more than one heavy family: {', '.join(sorted(families))}")
    if str(path) not in TABLES_OF_NAMES:
        yield from (breach("0", line, what) for line, what in _dynamic_imports(tree, found))
    if _is_pure(path, package):
        yield from (breach("2", line, what) for line, what in _impure(tree))


def _import_breaches(path: PurePosixPath, package: str, imported: Import) -> Iterator[tuple[str, str]]:
    module, top = imported.module, imported.top
    in_engines = path.parts[:3] == ("services", "modelmora_worker", "engines")

    # 1. Contexts meet only in protos.
    if package in CONTEXT_PACKAGES and top in (CONTEXT_PACKAGES | {"modelmora_app", "modelmora_worker"}) - {package}:
        yield "1", f"{package} imports {module}"
    if package == "modelmora_runtime" and top.startswith("modelmora_") and top != package:
        yield "1", f"the runtime imports {module}"
    if package == "modelmora":
        if top.startswith("modelmora_"):
            yield "1", f"the SDK imports the server package {module}"
        elif top not in SDK_MAY_IMPORT and top not in sys.stdlib_module_names:
            yield "1", f"the SDK imports {module}, which the base install does not have"

    # 2. Pure files.
    if _is_pure(path, package):
        siblings = {f"{package}.{name.removesuffix('.py')}" for name in PURE_FILES}
        standard = top in sys.stdlib_module_names and top not in IMPURE_STANDARD_LIBRARY
        pydantic = top == "pydantic" and path.name not in HOT_FILES
        sibling = any(imported.below(name) for name in siblings)
        if not (standard or pydantic or sibling or imported.below("modelmora.errors")):
            yield "2", f"the pure file imports {module}"

    # 3. SQL and gRPC where they belong.
    if top in SQL and not (
        path.name.endswith("store.py") or "migrations" in path.parts or str(path) in SQL_RUNTIME_FILES
    ):
        yield "3", f"SQL outside a store: {module}"
    is_grpc = top in {"grpc", "grpc_health", "grpc_reflection"} or any(
        p.endswith("_pb2_grpc") for p in module.split(".")
    )
    if is_grpc and not _may_import_grpc(path, package):
        yield "3", f"gRPC outside a service: {module}"

    # 4. Heavy libraries only in engines, and only at load.
    if top in HEAVY:
        if not in_engines:
            yield "4", f"heavy library outside the engines: {module}"
        elif imported.at_load:
            yield "4", f"heavy library imported with the file, not at load: {module}"
    if top in METERS and path.name not in METER_FILES:
        yield "4", f"a meter is read outside {' and '.join(sorted(METER_FILES))}: {module}"

    # 5. The worker stands on almost nothing, so that it runs under an engine's own interpreter.
    if package == "modelmora_worker" and not in_engines:
        allowed = top in sys.stdlib_module_names or any(imported.below(name) for name in WORKER_MAY_IMPORT)
        if not allowed:
            yield "5", f"the worker imports {module}"
    if package == "modelmora_worker" and in_engines:
        ours = top.startswith("modelmora") and not any(imported.below(name) for name in WORKER_MAY_IMPORT)
        if ours or is_grpc:
            yield "5", f"an engine imports {module}"
    if str(path) in {"libs/modelmora_runtime/framing.py", "libs/modelmora/errors.py"} and not (
        top in sys.stdlib_module_names or imported.below("modelmora.errors")
    ):
        yield "5", f"a foundation of the worker imports {module}"


SQL_RUNTIME_FILES = frozenset({"libs/modelmora_runtime/db.py", "libs/modelmora_runtime/postgres.py"})


def _may_import_grpc(path: PurePosixPath, package: str) -> bool:
    if package == "modelmora_runtime":
        return path.name != "framing.py"
    if package == "modelmora":
        return path.name in {"client.py", "aio.py", "bulk.py", "status.py"}
    if package == "modelmora_app":
        return "cli" in path.parts
    return package in CONTEXT_PACKAGES and (
        path.name in GRPC_FILES or path.name.endswith("_service.py") or "protocols" in path.parts
    )


def _is_pure(path: PurePosixPath, package: str) -> bool:
    return package in CONTEXT_PACKAGES and len(path.parts) == 3 and path.name in PURE_FILES


def _dynamic_imports(tree: ast.Module, found: list[Import]) -> Iterator[tuple[int, str]]:
    # find_spec only locates; what runs a module is named below.
    harmless = ("importlib.metadata", "importlib.resources", "importlib.util")
    for imported in found:
        if imported.module == "importlib":
            continue  # Judged by what is called of it.
        if imported.top in {"importlib", "runpy", "pkgutil", "imp"} and not any(
            imported.below(name) for name in harmless
        ):
            yield imported.line, f"{imported.module} outside the tables of names"
    for node in ast.walk(tree):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name in RUNNERS or (isinstance(node, ast.Name) and name in {"__import__", "exec", "eval"}):
            yield node.lineno, f"{name} outside the tables of names"


RUNNERS = frozenset({"import_module", "exec_module", "load_module", "module_from_spec", "run_module", "run_path"})


def _impure(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await):
            yield node.lineno, "async in a pure file"
        if isinstance(node, ast.Call):
            function = node.func
            name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            if name in IMPURE_CALLS:
                yield node.lineno, f"{name}() in a pure file"
