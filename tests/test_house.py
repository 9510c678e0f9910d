"""Rules of the house that no linter knows: who may import whom, how long a file may be, what may not be in the tree."""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("leptonc", "runtime_edge", "targets", "sample_models")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# What a package, or a module beside the packages, may import of ours, at any depth of its code. They stand in layers,
# the lowest first.
BASE = {"leptonc.errors", "leptonc.memory", "leptonc.progress", "leptonc.quiet", "leptonc.formats"}
MAY_IMPORT = {
    "runtime_edge": {"runtime_edge"},
    "targets": {"targets"},
    "sample_models": {"sample_models", "runtime_edge.errors"},
    "leptonc.errors": {"runtime_edge.errors", "runtime_edge.installation"},
    "leptonc.memory": set(),
    "leptonc.progress": set(),
    "leptonc.quiet": set(),
    "leptonc.formats": set(),
    "leptonc.report": {"leptonc.report"},
    "leptonc.ir": {"leptonc.ir", "leptonc.errors", "runtime_edge.part_record"},
    "leptonc.passes": {
        "leptonc.passes", "leptonc.report", "leptonc.ir", "leptonc.errors", "runtime_edge.manifest",
        "runtime_edge.part_record", "runtime_edge.derived",
    },
    "leptonc.calibrate": {
        "leptonc.calibrate", "leptonc.report", "leptonc.passes", "leptonc.ir", "leptonc.errors", "leptonc.memory",
        "runtime_edge.ort", "runtime_edge.part_record", "runtime_edge.probe", "runtime_edge.writing",
    },
    "leptonc.heal": {
        "leptonc.heal", "leptonc.calibrate", "leptonc.passes", "leptonc.ir", "leptonc.errors", "runtime_edge.writing",
    },
    "leptonc.sources": {
        "leptonc.sources", "leptonc.report", "leptonc.errors", "leptonc.memory", "runtime_edge", "sample_models",
    },
    "leptonc.frontend": {
        "leptonc.frontend", "leptonc.ir", "leptonc.sources", "leptonc.errors", "leptonc.quiet",
        "runtime_edge.encoder_record", "runtime_edge.part_record", "runtime_edge.tasks.names",
    },
    "leptonc.options": {"leptonc.formats", "leptonc.passes"},  # the names of methods and formats
    "leptonc.evaluate": {
        "leptonc.evaluate", "leptonc.calibrate", "leptonc.passes", "leptonc.frontend", "leptonc.ir", "leptonc.sources",
        "leptonc.report", *BASE, "leptonc.artifact.describe", "runtime_edge.encoder_record", "runtime_edge.manifest",
        "runtime_edge.part_record",
    },
    "leptonc.pages": {
        "leptonc.pages", "leptonc.evaluate.bounds", "leptonc.report", "leptonc.formats", "runtime_edge.manifest",
    },
    "leptonc.artifact": {
        "leptonc.__version__", "leptonc.artifact", "leptonc.pages", "leptonc.evaluate", "leptonc.passes",
        "leptonc.frontend", "leptonc.ir", "leptonc.sources", "leptonc.report", *BASE, "runtime_edge",
    },
    "leptonc.variant": {
        "leptonc.evaluate", "leptonc.frontend", "leptonc.passes", "leptonc.options", "leptonc.report", *BASE,
        "runtime_edge.manifest", "targets",
    },
    "leptonc.backends": {
        "leptonc.backends", "leptonc.artifact", "leptonc.evaluate", "leptonc.calibrate", "leptonc.passes", "leptonc.ir",
        "leptonc.report", "leptonc.options", "leptonc.variant", *BASE, "runtime_edge", "targets",
    },
    "leptonc.bundle": {
        "leptonc.bundle", "leptonc.backends.traits", "leptonc.artifact", *BASE, "runtime_edge", "targets",
    },
    "leptonc.build": {
        "leptonc.build", "leptonc.backends", "leptonc.artifact", "leptonc.evaluate", "leptonc.heal",
        "leptonc.calibrate", "leptonc.passes", "leptonc.frontend", "leptonc.ir", "leptonc.sources", "leptonc.report",
        "leptonc.options", "leptonc.variant", "leptonc.pages", *BASE, "runtime_edge", "sample_models", "targets",
    },
    "leptonc.sweep": {
        "leptonc.__version__", "leptonc.build", "leptonc.pages.axes", "leptonc.sources", "leptonc.report",
        "leptonc.calibrate.texts",
        "leptonc.options", *BASE, "runtime_edge", "targets",
    },
    "leptonc.cli": {"leptonc", "runtime_edge", "sample_models", "targets"},
}  # fmt: skip
# What the runtime must run without.
FORBIDDEN_IN_RUNTIME = {
    "torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub", "gguf", "ml_dtypes",
}  # fmt: skip


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(path: Path) -> tuple[str, ...]:
    """Names of all modules that a file imports, wherever in it; `from a import b` gives `a.b`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(names)


def is_within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_dependencies_point_one_way(package: str) -> None:
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in MODULES
        if is_within(module_name(path), {package})
        for name in imports(path)
        if is_within(name, set(PACKAGES)) and not is_within(name, MAY_IMPORT[package])
    ]
    assert wrong == []


def test_the_table_covers_every_package() -> None:
    """All packages of ours, and the compiler's modules beside its packages; but for what starts it."""
    names = {module_name(path) for path in MODULES} - {"leptonc", "leptonc.__main__"}
    assert {name for name in names if not is_within(name, set(MAY_IMPORT))} == set()


def test_a_step_knows_neither_another_step_nor_what_runs_it() -> None:
    steps = {module_name(path): path for path in (ROOT / "leptonc" / "build" / "steps").glob("[a-z]*.py")}
    above = {"leptonc.build.engine", "leptonc.build.steps", "leptonc.build.to_artifact", "leptonc.build.to_onnx"}
    named = [(step, name) for step, path in steps.items() for name in imports(path)]
    wrong = [f"{step} imports {name}" for step, name in named if is_within(name, above)]
    assert steps
    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    """No circle among our modules; imports for the type checker count too."""
    known = {module_name(path): path for path in MODULES}
    arrows = {
        name: {target for wanted in imports(path) if (target := owner(wanted, known)) not in (None, name)}
        for name, path in known.items()
    }
    assert circles(arrows) == {}


def test_no_c_file_needs_itself_through_others() -> None:
    """No circle among the kernels; a `.c` file and its header count as one, and functions are declared in it."""
    needs: dict[str, set[str]] = {}
    for path in sorted((ROOT / "runtime_edge" / "kernels").glob("*.[ch]")):
        headers = re.findall(r'^#include "(\w+)\.h"$', path.read_text(), re.MULTILINE)
        assert path.suffix == ".h" or path.stem == "library" or path.stem in headers, f"{path.name} has no header"
        needs.setdefault(path.stem, set()).update(name for name in headers if name != path.stem)
    assert {"attention", "few", "many", "multiply", "product", "sizes"} <= set(needs)
    assert circles(needs) == {}


def circles(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Circles, and what leads to them: what is left when what needs nothing more is taken away again and again."""
    while done := {name for name, wanted in arrows.items() if not wanted}:
        arrows = {name: wanted - done for name, wanted in arrows.items() if name not in done}
    return arrows


def owner(name: str, known: Collection[str]) -> str | None:
    """The module that has `name`: itself, or the one that it is defined in."""
    return name if name in known else parent if (parent := name.rpartition(".")[0]) in known else None


def test_every_folder_of_tests_is_run(pytestconfig: pytest.Config) -> None:
    """Pytest goes by the names of folders, and says nothing of what it leaves out."""
    left_out = pytestconfig.getini("norecursedirs")
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    names = {part for folder in folders for part in folder.relative_to(ROOT).parts}
    assert [name for name in sorted(names) for pattern in left_out if fnmatch.fnmatch(name, pattern)] == []
    assert "build" in names


def test_the_runtime_needs_nothing_of_the_compiler() -> None:
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in MODULES
        if is_within(module_name(path), {"runtime_edge", "targets"})
        for name in imports(path)
        if name.partition(".")[0] in FORBIDDEN_IN_RUNTIME
    ]
    assert wrong == []


def test_nothing_imports_the_command_lines() -> None:
    command_lines = {"leptonc.cli", "runtime_edge.cli"}
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in MODULES
        if not is_within(module_name(path), {*command_lines, "leptonc.__main__", "runtime_edge.__main__"})
        for name in imports(path)
        if is_within(name, command_lines)
    ]
    assert wrong == []


def test_only_the_command_line_imports_click_and_rich() -> None:
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in MODULES
        if not is_within(module_name(path), {"leptonc.cli", "runtime_edge.cli"})
        for name in imports(path)
        if name.partition(".")[0] in {"click", "rich"}
    ]
    assert wrong == []


def test_one_module_imports_onnxruntime() -> None:
    """It sets before the import what keeps ONNX Runtime from sending anything."""
    benchmarks = (ROOT / "benchmarks").glob("*.py")
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in (*MODULES, *benchmarks)
        if module_name(path) != "runtime_edge.ort"
        for name in imports(path)
        if name.partition(".")[0] == "onnxruntime"
    ]
    assert wrong == []


def test_every_module_imports() -> None:
    failed = {}
    for path in MODULES:
        if path.stem != "__main__":
            try:
                importlib.import_module(module_name(path))
            except ImportError as error:
                failed[module_name(path)] = str(error)
    assert failed == {}


def test_no_file_is_too_long() -> None:
    lengths = {path: path.read_text().count("\n") for path in tracked() if path.suffix == ".py"}
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > 400} == {}


def toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(path.read_text())


def test_lists_and_descriptions_name_the_same_sample_packages() -> None:
    folder = ROOT / "sample_models" / "packages"
    carried: dict[str, set[str]] = {}
    for model in map(toml, folder.glob("*.toml")):
        carried.setdefault(model["listing"], set()).update(model["packages"])
    listed = {
        path.stem: {line for line in path.read_text().splitlines() if not line.startswith("#")}
        for path in folder.glob("*.txt")
    }
    assert carried == listed


# What each extra may ask pip for: libraries with wheels, so that none is compiled, and no package that carries a model.
OF_EXTRAS = {
    "cpu": {"onnxruntime"},
    "gpu": {"onnxruntime-gpu"},
    "compiler": {
        "onnxruntime", "torch", "transformers", "onnx", "onnx-ir", "ml-dtypes", "safetensors", "huggingface-hub",
        "gguf", "packaging",
    },
    "rtx": {"tensorrt-rtx", "cuda-bindings"},
    "jetson": {"cuda-bindings"},
    "bench": {"psutil"},
    "chat": {"prompt_toolkit"},
    "test": {"pytest", "pytest-xdist", "hypothesis", "scipy", "onnx", "prompt_toolkit", "pyte"},
    "docs": {"mkdocs-material", "griffelib"},
    "sentence-tests": {"sentence-transformers"},
    "tensorrt-api": {"tensorrt-lean-cu12-bindings", "tensorrt-lean-cu12-libs"},
}  # fmt: skip
OF_EXTRAS["dev"] = {"ruff", "mypy", "fastapi", "httpx2"}.union(
    *(OF_EXTRAS[extra] for extra in ("docs", "test", "tensorrt-api"))
)
OF_EXTRAS["all"] = {name for extra in ("bench", "chat", "compiler", "dev", "rtx") for name in OF_EXTRAS[extra]}


def test_extras_ask_for_nothing_else() -> None:
    extras = toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]

    def resolved(extra: str) -> set[str]:
        names: set[str] = set()
        for requirement in extras[extra]:
            name, _, inner = re.match(r"([A-Za-z0-9._-]+)(\[([a-z0-9,-]+)\])?", requirement).groups()  # type: ignore[union-attr]
            names |= {other for each in inner.split(",") for other in resolved(each)} if inner else {name}
        return names

    assert {extra: resolved(extra) for extra in extras} == OF_EXTRAS


def test_every_verb_that_is_named_exists() -> None:
    """In code, hints among it, and in documents: `lepton-edge VERB` and `leptonc VERB`."""
    from leptonc.cli import _VERBS as OF_COMPILER
    from runtime_edge.cli.verbs import VERBS as OF_RUNTIME

    named = re.compile(r"(?:`|^ *(?:\$ )?|bin/)(leptonc|lepton-edge) ([a-z]+)\b", re.MULTILINE)
    verbs = {"leptonc": OF_COMPILER, "lepton-edge": OF_RUNTIME}
    texts = [*MODULES, *(path for path in tracked() if path.suffix == ".md" and path.name != "CHANGELOG.md")]
    wrong = [
        f"{path.relative_to(ROOT)}: {program} {verb}"
        for path in texts
        for program, verb in named.findall(path.read_text())
        if verb not in verbs[program]
    ]
    assert wrong == []
    assert any(named.search(path.read_text()) for path in MODULES)


# Written in parts, so that this file does not hold them.
UNWANTED = {
    "hosts of package registries": r"\b(?:files\.python" + r"hosted\.org|pypi\." + r"org|registry\.npm" + r"js\.org)",
    "paths of one machine": r"(?<![\w.])/(?:wo" + r"rk|fa" + r"rm|root|home/\w+)/|/tmp" + r"/w\b",
    "unfinished work": r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b",
}


@pytest.mark.parametrize("what", UNWANTED)
def test_the_tree_is_free_of(what: str) -> None:
    pattern = re.compile(UNWANTED[what])
    found = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(lines, 1)
            if pattern.search(line)
        ]
    assert found == []


def test_help_imports_little() -> None:
    program = "import sys; from leptonc.cli import main; main(['--help']); print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stderr.split()}
    heavy = {"numpy", "torch", "transformers", "onnx", "onnxruntime", "tokenizers", "rich", "jinja2", "targets"}
    assert imported & heavy == set()
    assert "click" in imported
