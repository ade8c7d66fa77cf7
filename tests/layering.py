"""The rules of the source as a program: who may import whom, and what no file may contain.

Everything is read with `ast`; nothing is imported or run, so a broken package is still judged.
`check_tree` returns one line per violation: `file:line: what`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "megatron_chimed"

# An owner may import the owners of earlier lines; names on one line never import each other.
LAYERS = (
    ("errors", "files", "renames", "accelerators"),
    ("yaml_files",),
    ("command_line", "field_types", "disk_space", "launch"),
    ("observe",),
    ("kernels", "tokenizer"),
    ("data",),
    ("config",),
    ("engine",),
    ("model", "optim"),
    ("checkpoint",),
    ("conversion",),
    ("generation",),
    ("evaluation",),
    ("training",),
    ("planning",),
    ("run",),
    ("rejection",),
    ("workflow",),
    ("tools",),
    ("benchmarks", "examples"),
    ("tests",),
)
RANK = {owner: rank for rank, layer in enumerate(LAYERS) for owner in layer}
FOLDERS = (PACKAGE, "tools", "benchmarks", "examples", "tests")
# A compiled extension has few owners, which give it a Python face; tools/doctor.py looks for all.
EXTENSION_USERS = {"_data_helpers": {"data", "tokenizer", "tools"}}

# These start fast and know no ranks: torch only inside functions, torch.distributed never.
LIGHT_OWNERS = {
    "errors",
    "files",
    "renames",
    "accelerators",
    "yaml_files",
    "command_line",
    "field_types",
    "disk_space",
    "observe",
    "tokenizer",
    "data",
    "config",
}
IMPORTS_TORCH = ("torch", f"{PACKAGE}.kernels")
MEGATRON_CORE_OWNERS = {"engine", "model", "checkpoint", "conversion", "benchmarks", "tests"}

# What runs code that a file brings along. Tests may: they compare with such formats.
UNSAFE_NAMES = {
    "cloudpickle",
    "dill",
    "eval",
    "exec",
    "joblib",
    "marshal",
    "pickle",
    "shelve",
    "torch.load",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}
UNSAFE_KEYWORDS = {"allow_pickle", "trust_remote_code"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
LONG_FUNCTION_MARKER = "# long: "
CPP_SUFFIXES = {".cpp", ".cc", ".h", ".hpp"}  # CUDA files may keep one kernel family together

Functions = (ast.FunctionDef, ast.AsyncFunctionDef)


def check_tree(root: Path) -> list[str]:
    """All violations below a repository's root, in the order of files and lines."""
    violations = []
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        found = sorted(_check_file(name, text), key=lambda item: item[0])
        violations += [f"{name}:{line}: {what}" for line, what in found]
    violations += _circles(root)
    for path in sorted((root / "csrc").rglob("*")):
        if path.suffix in CPP_SUFFIXES:
            text = path.read_text(encoding="utf-8")
            name = path.relative_to(root).as_posix()
            violations += [f"{name}:{line}: {what}" for line, what in _check_length(text)]
    return violations


def _check_file(name: str, text: str) -> Iterator[tuple[int, str]]:
    yield from _check_length(text)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield error.lineno or 1, f"does not parse: {error.msg}"
        return
    owner = _owner_of_file(name)
    if owner != PACKAGE and owner not in RANK:
        yield 1, f"{owner} has no layer; add it to LAYERS in tests/layering.py"
        return
    yield from _check_imports(name, owner, tree)
    yield from _check_functions(tree, text.splitlines())
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield node.lineno, "the global statement is not used here; pass the value"
        elif isinstance(node, ast.ExceptHandler):
            yield from _check_handler(node)
        elif owner != "tests":
            yield from _check_safety(node)


def _check_length(text: str) -> Iterator[tuple[int, str]]:
    num_lines = len(text.splitlines())
    if num_lines > MAX_FILE_LINES:
        yield num_lines, f"{num_lines} lines, the limit is {MAX_FILE_LINES}"


def _owner_of_file(name: str) -> str:
    """`errors` for megatron_chimed/errors.py, `data` for megatron_chimed/data/x.py, else a folder.

    The package's own `__init__.py` belongs to the package, which imports nothing of itself.
    """
    parts = name.removesuffix(".py").split("/")
    if parts[0] != PACKAGE or parts[1] == "__init__":
        return parts[0]
    return parts[1]


def _owner_of_import(module: str) -> str | None:
    """The owner that a dotted name belongs to; None for what is not ours."""
    first, _, rest = module.partition(".")
    if first == PACKAGE:
        return rest.split(".")[0] or PACKAGE
    return first if first in FOLDERS else None


def _imported_names(name: str, node: ast.AST) -> list[str]:
    """Full dotted names that an import statement binds; relative ones are resolved."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = name.split("/")[: -node.level]
        base = ".".join([*package, base] if base else package)
    return [f"{base}.{alias.name}" for alias in node.names]


def _nodes(tree: ast.Module, *, with_functions: bool) -> Iterator[ast.AST]:
    """Nodes that can run, or those that run when the module is imported: no function bodies.

    What stands under `if TYPE_CHECKING` never runs.
    """
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        skipped = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if isinstance(node, (*Functions, ast.Lambda)) and not with_functions:
            continue
        pending += node.orelse if skipped else ast.iter_child_nodes(node)


def _is_below(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _check_imports(name: str, owner: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        for module in _imported_names(name, node):
            if not _may_import(owner, module):
                yield node.lineno, f"{owner} may not import {module}"
        if owner in LIGHT_OWNERS and isinstance(node, ast.Attribute):
            if ast.unparse(node) == "torch.distributed":
                yield node.lineno, f"{owner} may not use torch.distributed"
    if owner not in LIGHT_OWNERS:
        return
    for node in _nodes(tree, with_functions=False):
        for module in _imported_names(name, node):
            if any(_is_below(module, heavy) for heavy in IMPORTS_TORCH):
                yield node.lineno, f"{owner} may not import {module} at module level"


def _may_import(owner: str, module: str) -> bool:
    if _is_below(module, "megatron.training"):
        return False
    if _is_below(module, "megatron.core"):
        return owner in MEGATRON_CORE_OWNERS
    if _is_below(module, "torch.distributed"):
        return owner not in LIGHT_OWNERS
    imported = _owner_of_import(module)
    if imported is None or imported == owner or owner == "tests":
        return True
    if imported in EXTENSION_USERS:
        return owner in EXTENSION_USERS[imported]
    if imported.startswith("__") or imported == PACKAGE:
        return True  # the version
    return imported in RANK and owner in RANK and RANK[imported] < RANK[owner]


def _circles(root: Path) -> Iterator[str]:
    """One line per circle of imports among the files of the package, however late they import.

    Only an import under `if TYPE_CHECKING` may point back: it never runs.
    """
    files = {_module_of(path, root): path for path in (root / PACKAGE).rglob("*.py")}
    imports = {}
    for module, path in files.items():
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError:
            continue
        name = path.relative_to(root).as_posix()
        nodes = _nodes(tree, with_functions=True)
        targets = (target for node in nodes for target in _imported_names(name, node))
        imports[module] = {_file_of(target, files) for target in targets} - {None, module}
    done: set[str] = set()
    for module in sorted(imports):
        yield from _circles_from(module, imports, [], done)


def _circles_from(
    module: str, imports: dict[str, set[str]], path: list[str], done: set[str]
) -> Iterator[str]:
    if module in path:
        yield "circle of imports: " + " -> ".join([*path[path.index(module) :], module])
    elif module not in done:
        for target in sorted(imports.get(module, ())):
            yield from _circles_from(target, imports, [*path, module], done)
        done.add(module)


def _module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _file_of(name: str, files: dict[str, Path]) -> str | None:
    """The module that an imported name is, or is defined in; None for what is not ours."""
    return next((module for module in (name, name.rpartition(".")[0]) if module in files), None)


def _check_functions(tree: ast.Module, lines: list[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, Functions):
            continue
        num_lines = node.end_lineno - node.lineno + 1
        if num_lines <= MAX_FUNCTION_LINES:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        header = lines[max(0, first - 2) : node.body[0].lineno - 1]  # with the line above it
        if not any(line.partition(LONG_FUNCTION_MARKER)[2].strip() for line in header):
            limit = f"the limit is {MAX_FUNCTION_LINES} without a comment '# long: <reason>'"
            yield node.lineno, f"{node.name} has {num_lines} lines, {limit}"


def _check_handler(node: ast.ExceptHandler) -> Iterator[tuple[int, str]]:
    if node.type is None:
        yield node.lineno, "bare except; name the exceptions"
        return
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    broad = {"Exception", "BaseException"} & {ast.unparse(item) for item in caught}
    empty = all(
        isinstance(item, (ast.Pass, ast.Continue))
        or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
        for item in node.body
    )
    if broad and empty:
        yield (
            node.lineno,
            f"except {broad.pop()} swallows every error; name those that are harmless",
        )


def _check_safety(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = _imported_names("", node)
        unsafe = [name for name in names if any(_is_below(name, bad) for bad in UNSAFE_NAMES)]
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        unsafe = [called] if called in UNSAFE_NAMES else []
        for keyword in node.keywords:
            refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in UNSAFE_KEYWORDS and not refused:
                unsafe.append(f"{keyword.arg}={ast.unparse(keyword.value)}")
    else:
        return
    for name in unsafe:
        yield node.lineno, f"{name} can run code that a file brings along"
