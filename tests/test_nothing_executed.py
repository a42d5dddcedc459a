"""Nothing is unpickled or executed from a file: the source has no call that would."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    ("yaml", "load"),
    ("yaml", "load_all"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("yaml", "Loader"),
    ("yaml", "FullLoader"),
    ("yaml", "UnsafeLoader"),
    ("torch", "load"),
    ("jax", "export"),
}


def dangers(source: str) -> list[str]:
    """What in a source could run code that a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [n for n in names if n.partition(".")[0] in MODULES]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id, node.attr
            found += [".".join(name)] if name in ATTRIBUTES else []
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
                found.append(node.func.id)
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and (
                    keyword.value.value is False
                )
                if keyword.arg == "allow_pickle" and not allowed:
                    found.append("allow_pickle")
    return found


@pytest.mark.parametrize("folder", ["swa_jax", "pallas_kernels"])
def test_the_package_executes_nothing_from_a_file(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, f"no source under {folder}"
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in paths
        if (found := dangers(path.read_text(encoding="utf-8")))
    }
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import dill as d",
        "eval('1')",
        "exec(text)",
        "compile(text, 'x', 'exec')",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.unsafe_load(text)",
        "torch.load(path)",
    ],
)
def test_a_danger_is_found(source):
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "np.load(path)",
        "np.load(path, allow_pickle=False)",
        "step.lower(x).compile()",
        "yaml.SafeLoader(text)",
        "re.compile('x')",
    ],
)
def test_what_is_no_danger(source):
    assert not dangers(source)
