"""Importing a module of utils has no effect, and imports point down only: between packages, and between modules."""

import ast
import functools
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


# From top to bottom. A package imports itself and those below it; the bottom is the modules directly in utils/
ORDER = ["reports", "training", "examples", "tokens", "models", "text", "hub", "config", "bottom"]
MAX_LINES = 300
# Old names that published files refer to; they only pass on what another module has.
FORWARDING = {"utils.xlnet_adapters"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / "utils").rglob("*.py"))
    if path.name != "__init__.py"
}
# Imports the modules one by one, after all other libraries, and prints what each of them changed.
IMPORTER = """
import atexit, ast, importlib, json, logging, os, signal, sys

modules = json.loads(sys.argv[1])
libraries = set()
for path in modules.values():
    for node in ast.walk(ast.parse(open(path).read())):
        if isinstance(node, ast.Import):
            libraries |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            libraries.add(node.module)
for library in sorted(libraries):
    if library.split(".")[0] != "utils":
        try:
            importlib.import_module(library)
        except ImportError:
            pass  # of the other version of transformers, or not installed
import matplotlib
import transformers
transformers.AutoTokenizer, transformers.Trainer, transformers.AutoModelForPreTraining

for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
    signal.signal(number, signal.SIG_DFL)  # what was ignored in the process before would be ignored here
registered = []
atexit.register = lambda function, *args, **kwargs: registered.append(repr(function)) or function

def state():
    loggers = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)} | {"": logging.root}
    return {
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "atexit": list(registered),
        "environment": dict(os.environ),
        "matplotlib's backend": matplotlib.rcParams._get_backend_or_none(),
        "logging handlers": {name: list(logger.handlers) for name, logger in loggers.items() if logger.handlers},
        "logging levels": {name: logger.level for name, logger in loggers.items() if logger.level},
    }

for module in modules:
    before = state()
    importlib.import_module(module)
    after = state()
    for what in before:
        if before[what] != after[what]:
            print(json.dumps([module, what]))
"""


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """The names of all modules that a module imports, anywhere in its code."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names |= {f"{node.module}.{name.name}" for name in node.names} & set(MODULES) or {node.module}
    return frozenset(names)


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else "bottom"


def test_every_package_has_its_place():
    assert {package_of(module) for module in MODULES} == set(ORDER)


def test_imports_point_down():
    upwards = [
        f"{module} imports {imported}"
        for module in MODULES
        for imported in imports_of(module)
        if imported in MODULES
        and module not in FORWARDING
        and ORDER.index(package_of(imported)) < ORDER.index(package_of(module))
    ]
    assert not upwards


def bottom_up() -> list[str]:
    """All modules, each after those that it imports, also inside its functions."""
    remaining = {module: imports_of(module) & set(MODULES) for module in MODULES}
    ordered = []
    while remaining:
        lowest = [module for module, imported in remaining.items() if not imported & set(remaining)]
        assert lowest, f"circles among {sorted(remaining)}"
        ordered += lowest
        for module in lowest:
            del remaining[module]
    return ordered


def test_no_circles():
    assert len(bottom_up()) == len(MODULES)


def test_imports_have_no_effect():
    paths = {module: str(MODULES[module]) for module in bottom_up()}
    # Not with the environment of this process, which has imported the modules.
    environment = {name: os.environ[name] for name in ("PATH", "HF_HOME", "OMP_NUM_THREADS")}
    result = subprocess.run(
        [sys.executable, "-c", IMPORTER, json.dumps(paths)],
        env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not [json.loads(line) for line in result.stdout.splitlines()]


def test_forwarding_modules_are_imported_by_none():
    assert not [module for module in MODULES if imports_of(module) & FORWARDING]


def test_no_script_is_imported():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    assert {"run_clm", "run_mlm", "run_plm", "run_pretraining"} <= scripts
    assert not [module for module in MODULES if imports_of(module) & scripts]


def test_errors_import_nothing():
    assert not imports_of("utils.errors")


def test_light_modules_import_the_standard_library_only():
    for module in ("utils.errors", "utils.environment"):
        assert {name.split(".")[0] for name in imports_of(module)} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES)
def test_environment_variables_are_read_in_one_place(module):
    if module == "utils.environment":
        return
    code = ast.parse(MODULES[module].read_text())
    names = {node.attr for node in ast.walk(code) if isinstance(node, ast.Attribute)}
    names |= {name.name for node in ast.walk(code) if isinstance(node, ast.ImportFrom) for name in node.names}
    used = names & {"environ", "environb", "getenv", "putenv", "unsetenv"}
    assert not used


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_too_long(module):
    assert len(MODULES[module].read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("package", ORDER[:-1])
def test_packages_export_what_is_in_them_and_nothing_else(package):
    """An __init__.py has a docstring, imports from its own package, and __all__ with the names that it imports."""
    _, *imports, exports = ast.parse((ROOT / "utils" / package / "__init__.py").read_text()).body
    assert all(isinstance(node, ast.ImportFrom) for node in imports)
    assert all(node.module.startswith(f"utils.{package}.") for node in imports)
    assert sorted(name.name for node in imports for name in node.names) == ast.literal_eval(exports.value)


@pytest.mark.parametrize("script", ["run_clm", "run_mlm", "run_plm", "run_pretraining"])
def test_scripts_use_what_packages_export(script):
    """Or what a module has; so that no package exports what only some script uses."""
    used = {
        f"{node.module}.{name.name}"
        for node in ast.walk(ast.parse((ROOT / f"{script}.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.count(".") == 1
        for name in node.names
    }
    exported = {
        f"utils.{package}.{name}"
        for package in ORDER[:-1]
        for name in ast.literal_eval(ast.parse((ROOT / "utils" / package / "__init__.py").read_text()).body[-1].value)
    }
    unused = {"utils.examples.make_blocks"} if script in ("run_mlm", "run_plm") else set()  # through make_text_blocks
    assert exported - used == unused
