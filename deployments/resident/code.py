"""Finds the flow of a deployment, and imports it once for each of the deployment's versions.

What a deployment names is not trusted: whoever can write to Prefect's server could name any code that is importable.
"""

import importlib
import re
import sys
from types import ModuleType
from typing import Any

from prefect import Flow
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import load_flow_from_entrypoint

from tasks.errors import ConfigurationError

PACKAGES = ["flows"]
"""The packages whose flows are run, whatever Prefect's server says."""
ENTRYPOINT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
"""A flow by its module: no file, which a colon would tell."""


class FlowCode:
    """Flows by deployment."""

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[tuple[str | None, str], Flow[..., Any]]] = {}

    def flow(self, deployment: DeploymentResponse) -> Flow[..., Any]:
        """The flow of a deployment, loaded anew when the deployment has another version than before.

        What a module imports stays as it is: for changes there, start workers anew.

        Raises:
            ConfigurationError: it names code outside of PACKAGES, or has pull steps. Its flow is a generator.
            Exception: its code cannot be imported.
        """
        entrypoint = _checked(deployment)
        key, wanted = str(deployment.id), (deployment.version, entrypoint)
        known = self._loaded.get(key)
        if known is not None and known[0] == wanted:
            return known[1]
        flow = self._load(entrypoint, anew=known is not None)
        self._loaded[key] = (wanted, flow)
        return flow

    def module(self, flow: Flow[..., Any]) -> ModuleType | None:
        """The module that a flow was defined in."""
        return sys.modules.get(flow.fn.__module__)

    def _load(self, entrypoint: str, *, anew: bool) -> Flow[..., Any]:
        name = entrypoint.rpartition(".")[0]
        if anew and (module := sys.modules.get(name)) is not None:
            importlib.reload(module)
        else:
            # Prefect would look for it in the current folder first, where a file `flows.py` may lie.
            importlib.import_module(name)
        flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
        if not _ours(flow.fn.__module__):
            raise ConfigurationError(f"{entrypoint} is a flow of {flow.fn.__module__}: a resident worker refuses it.")
        if flow.isgenerator:
            raise ConfigurationError(f"Flow {flow.name!r} is a generator: a resident worker cannot run it.")
        return flow


def _checked(deployment: DeploymentResponse) -> str:
    """A deployment's entrypoint. Raises ConfigurationError: it is not one that a resident worker runs."""
    if deployment.pull_steps:
        raise ConfigurationError(
            f"Deployment {deployment.name!r} has pull steps, which would change the folder of all flow runs of a "
            "resident worker: install its code with the worker and give the deployment `pull: []`."
        )
    entrypoint = deployment.entrypoint or ""
    if not ENTRYPOINT.fullmatch(entrypoint) or not _ours(entrypoint):
        raise ConfigurationError(
            f"Deployment {deployment.name!r} names {entrypoint!r}, and a resident worker runs flows of the package "
            f"{' or '.join(PACKAGES)} only. If nobody of yours has changed it, somebody else can write to your Prefect "
            "server: see who, then run `kycflow deploy`."
        )
    return entrypoint


def _ours(dotted: str) -> bool:
    return dotted.partition(".")[0] in PACKAGES
