"""The contract suite, over what is installed and the toy."""

import importlib.util
from pathlib import Path

from kvmarch import plugins


def pytest_kvmarch_architectures():
    file = Path(__file__).parent.parent / "third_party" / "kvmarch_toy" / "__init__.py"
    spec = importlib.util.spec_from_file_location("kvmarch_toy_of_contract", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [plugins.check("toy", module, "kvmarch-toy", "1.0")]
