"""Run a module whose resident workers take the tests' flows, too: `python -m tests.with_own_flows MODULE ...`."""

import runpy
import sys

from deployments.resident import code

if __name__ == "__main__":
    code.PACKAGES.append("tests")
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
