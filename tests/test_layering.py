"""The rules of tests/layering.py hold for this repository, and the checker sees each violation."""

from pathlib import Path

import pytest

from tests.layering import check_tree

ROOT = Path(__file__).resolve().parent.parent

LONG_BODY = "\n    x = 1" * 60

PLANTED = [
    ("megatron_chimed/data/a.py", "from megatron_chimed.engine import x", "data may not import"),
    ("megatron_chimed/data/a.py", "from megatron_chimed import engine", "data may not import"),
    ("megatron_chimed/data/a.py", "from ..engine import x", "megatron_chimed.engine.x"),
    ("megatron_chimed/data/a.py", "def f():\n    import megatron_chimed.model", "a.py:2: data may"),
    ("megatron_chimed/files.py", "from megatron_chimed import errors", "files may not import"),
    ("megatron_chimed/kernels/a.py", "import megatron_chimed.tokenizer.b", "kernels may not"),
    ("megatron_chimed/model/a.py", "import megatron_chimed._data_helpers", "model may not import"),
    ("megatron_chimed/config.py", "import tools.train", "config may not import tools.train"),
    ("megatron_chimed/__init__.py", "from megatron_chimed import data", "megatron_chimed may not"),
    ("tools/a.py", "from tests import layering", "tools may not import tests.layering"),
    ("megatron_chimed/rockets/a.py", "x = 1", "rockets has no layer"),
    ("megatron_chimed/engine/a.py", "import megatron.training.loop", "engine may not import"),
    ("tests/a.py", "from megatron import training", "tests may not import megatron.training"),
    ("megatron_chimed/optim/a.py", "from megatron.core import mpu", "optim may not import"),
    ("examples/a.py", "from megatron import core", "examples may not import megatron.core"),
    ("megatron_chimed/observe/a.py", "import torch", "torch at module level"),
    ("megatron_chimed/data/a.py", "if 1:\n    import torch.nn", "torch.nn at module level"),
    ("megatron_chimed/data/a.py", "class A:\n    from torch import nn", "at module level"),
    ("megatron_chimed/data/a.py", "from megatron_chimed import kernels", "kernels at module level"),
    (
        "megatron_chimed/data/a.py",
        "def f():\n    import torch.distributed",
        "may not import torch.",
    ),
    ("megatron_chimed/data/a.py", "x = lambda: torch.distributed.y", "not use torch.distributed"),
    ("megatron_chimed/errors.py", "x = 1\n" * 401, "401 lines, the limit is 400"),
    ("tests/a.py", "x = 1\n" * 401, "401 lines, the limit is 400"),
    ("csrc/data/a.h", "int x;\n" * 401, "csrc/data/a.h:401: 401 lines, the limit is 400"),
    ("tools/a.py", f"def f():{LONG_BODY}", "f has 61 lines, the limit is 60"),
    ("tools/a.py", f"class A:\n  # long: \n  async def f():{LONG_BODY}", "f has 61 lines"),
    ("tools/a.py", "def f():\n    global x\n    x = 1", "a.py:2: the global statement"),
    ("tools/a.py", "try:\n    f()\nexcept:\n    raise", "a.py:3: bare except"),
    ("tests/a.py", "try:\n    f()\nexcept Exception:\n    pass", "except Exception swallows"),
    ("tools/a.py", "try:\n    f()\nexcept (A, BaseException):\n    ...", "BaseException swallows"),
    ("tools/a.py", "import pickle", "pickle can run code"),
    ("tools/a.py", "from pickle import loads", "pickle.loads can run code"),
    ("megatron_chimed/model/a.py", "x = torch.load(f)", "torch.load can run code"),
    ("megatron_chimed/model/a.py", "from torch import load", "torch.load can run code"),
    ("tools/a.py", "x = np.load(f, allow_pickle=True)", "allow_pickle=True can run code"),
    ("tools/a.py", "x = f(trust_remote_code=flag)", "trust_remote_code=flag can run code"),
    ("tools/a.py", "x = eval(text)", "eval can run code"),
    ("tools/a.py", "x = yaml.load(text)", "yaml.load can run code"),
    ("tools/a.py", "x = = 1", "a.py:1: does not parse"),
]

ALLOWED = [
    ("megatron_chimed/engine/a.py", "import torch\nfrom megatron.core import parallel_state"),
    ("megatron_chimed/engine/a.py", "from megatron_chimed import __version__, data, errors"),
    ("megatron_chimed/data/a.py", "from megatron_chimed import _data_helpers\nfrom . import b"),
    ("megatron_chimed/data/a.py", "from typing import Any\ndef f():\n    import torch"),
    ("megatron_chimed/data/a.py", "if TYPE_CHECKING:\n    import torch\nelse:\n    x = 1"),
    ("megatron_chimed/model/a.py", "model.eval()\nx = np.load(f, allow_pickle=False)"),
    ("tools/a.py", "import megatron_chimed.workflow\nfrom megatron_chimed.model import x"),
    ("tests/a.py", "import pickle\nimport megatron.core\nfrom tools import train"),
    ("tools/a.py", f"def f():  # long: one table of settings{LONG_BODY}"),
    ("tools/a.py", f"# long: one table of settings\n@decorated\ndef f(\n):{LONG_BODY}"),
    ("tools/a.py", "try:\n    f()\nexcept Exception as error:\n    raise A from error"),
    ("tools/a.py", "try:\n    f()\nexcept OSError:\n    pass"),
    ("csrc/cuda/a.cu", "int x;\n" * 401),
]


def plant(root: Path, name: str, source: str) -> list[str]:
    path = root / name
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    return check_tree(root)


def test_this_repository_keeps_the_rules():
    violations = check_tree(ROOT)
    assert not violations, "\n" + "\n".join(violations)


@pytest.mark.parametrize(("name", "source", "message"), PLANTED)
def test_a_planted_violation_is_named(tmp_path, name, source, message):
    violations = plant(tmp_path, name, source)
    assert any(line.startswith(f"{name}:") and message in line for line in violations), violations


@pytest.mark.parametrize(("name", "source"), ALLOWED)
def test_what_is_allowed_passes(tmp_path, name, source):
    assert plant(tmp_path, name, source) == []


@pytest.mark.parametrize(
    ("back", "circles"),
    [
        ("from megatron_chimed.data.a import x", 1),
        ("def f():\n    from megatron_chimed.data import a", 1),
        ("if TYPE_CHECKING:\n    from megatron_chimed.data.a import x", 0),
        ("from megatron_chimed.errors import DataError", 0),
    ],
)
def test_a_circle_inside_a_package_is_named(tmp_path, back, circles):
    plant(tmp_path / "megatron_chimed", "data/a.py", "from megatron_chimed.data.c.b import x")
    plant(tmp_path / "megatron_chimed", "data/c/b.py", back)
    found = check_tree(tmp_path)
    names = "megatron_chimed.data.a -> megatron_chimed.data.c.b -> megatron_chimed.data.a"
    assert found == [f"circle of imports: {names}"] * circles
