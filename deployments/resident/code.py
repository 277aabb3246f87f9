"""Finds the flow of a deployment, and imports it once for each of the deployment's versions."""

import importlib
import sys
from types import ModuleType
from typing import Any

from prefect import Flow
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import load_flow_from_entrypoint

from tasks.errors import ConfigurationError


class FlowCode:
    """Flows by deployment."""

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[str | None, Flow[..., Any]]] = {}

    def flow(self, deployment: DeploymentResponse) -> Flow[..., Any]:
        """The flow of a deployment, loaded anew when the deployment has another version than before.

        What a module imports stays as it is: for changes there, start workers anew.

        Raises:
            ConfigurationError: its code is not importable from where the worker runs.
        """
        key = str(deployment.id)
        known = self._loaded.get(key)
        if known is not None and known[0] == deployment.version:
            return known[1]
        flow = self._load(deployment, anew=known is not None)
        self._loaded[key] = (deployment.version, flow)
        return flow

    def module(self, flow: Flow[..., Any]) -> ModuleType | None:
        """The module that a flow was defined in."""
        return sys.modules.get(flow.fn.__module__)

    def _load(self, deployment: DeploymentResponse, *, anew: bool) -> Flow[..., Any]:
        if deployment.pull_steps:
            raise ConfigurationError(
                f"Deployment {deployment.name!r} has pull steps, which would change the folder of all flow runs of a "
                "resident worker: install its code with the worker and give the deployment `pull: []`."
            )
        entrypoint = deployment.entrypoint or ""
        if anew and ":" not in entrypoint and (module := sys.modules.get(entrypoint.rpartition(".")[0])) is not None:
            importlib.reload(module)
        flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
        if flow.isgenerator:
            raise ConfigurationError(f"Flow {flow.name!r} is a generator: a resident worker cannot run it.")
        return flow
