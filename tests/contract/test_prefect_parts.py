"""What kycflow rests on inside Prefect, and Prefect promises to nobody.

Run it first with another release of Prefect: what changed fails here in seconds, by its name, before the tests on real
servers fail for reasons that have to be searched. A part that is used nowhere any more goes from here, too.
"""

import ast
import importlib
import inspect
from collections.abc import Callable
from dataclasses import fields
from types import CodeType
from typing import Any

import prefect.settings
import pytest
from prefect import Flow, flow
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.flow_engine import AsyncFlowRunEngine, FlowRunEngine
from prefect.logging.configuration import DEFAULT_LOGGING_SETTINGS_PATH, load_logging_config
from prefect.workers.process import ProcessWorker

from deployments.stack import Addresses, environment
from tasks.settings import Settings
from tests.readme import CHECKOUT

ENGINE = "prefect.flow_engine.BaseFlowRunEngine"
WORKER = "prefect.workers.base.BaseWorker"
CLIENT = "prefect.client.orchestration.PrefectClient"

VERSION_AND_POLICY = ("flow_run_id", "flow_version", "empirical_policy")
# Parameters as we name or override them. `*`: there may be more.
CALLABLES = {
    # deployments/resident/engine.py
    "prefect._flow_run_suspension.register_flow_run_suspension_request": ("flow_run_id", "suspension_request"),
    "prefect._flow_run_suspension.FlowRunSuspensionRequest.raise_if_requested": ("self",),
    "prefect._internal.engine.resolve_custom_flow_run_name": ("flow", "parameters"),
    "prefect.flow_engine._flow_parameters": ("flow", "flow_run", "parameters"),
    f"{ENGINE}.setup_flow_run_suspension_request": ("self",),
    f"{ENGINE}._get_flow_run_suspension_request": ("self",),
    **{
        f"prefect.flow_engine.{engine}.{method}": ("self", *parameters)
        for engine in ("AsyncFlowRunEngine", "FlowRunEngine")
        for method, parameters in {
            "set_state": ("state", "force"),
            "handle_crash": ("exc",),
            "handle_cancellation": ("exc",),
            "start": (),
            "is_running": (),
            "run_context": (),
            "call_flow_fn": (),
        }.items()
    },
    f"{CLIENT}.read_server_default_result_storage": ("self",),
    "prefect.client.orchestration.SyncPrefectClient.read_server_default_result_storage": ("self",),
    # deployments/resident/worker.py
    f"{WORKER}.start": ("self", "run_once", "with_healthcheck", "printer"),
    f"{WORKER}.setup": ("self",),
    f"{WORKER}.teardown": ("self", "exc_info"),
    f"{WORKER}.is_worker_still_polling": ("self", "query_interval_seconds"),
    f"{WORKER}.get_and_submit_flow_runs": ("self",),
    f"{WORKER}._submit_run": ("self", "flow_run"),
    f"{WORKER}._record_work_pool_snapshot": ("self", "work_pool"),
    f"{WORKER}._setup_cancellation_observer": ("self",),
    f"{WORKER}._cancel_run": ("self", "flow_run_id"),
    f"{WORKER}._mark_flow_run_as_cancelled": ("self", "flow_run", "state_updates"),
    f"{WORKER}._release_limit_slot": ("self", "flow_run_id"),
    "prefect._internal.observers.FlowRunCancellingObserver.remove_in_flight_flow_run_id": ("self", "flow_run_id"),
    "prefect.utilities.engine.propose_state": ("client", "state", "flow_run_id", "*"),
    # deployments/worker.py, deployments/provision.py, deployments/resident/code.py
    "prefect.workers.server._WorkerStartupHealthcheck.__call__": ("self",),
    f"{WORKER}._submit_run_and_capture_errors": ("self", "flow_run", "*"),
    "prefect.plugins.load_prefect_collections": ("*",),
    "prefect.cli.app": (),
    "prefect.flows.load_flow_from_entrypoint": ("entrypoint", "use_placeholder_flow"),
    # deployments/prefect_server.py
    "prefect.server.api.server.create_app": ("*",),
    "prefect.server.api.collections.get_collection_view": ("view",),
    "prefect.server.database.configurations.AioSqliteConfiguration.begin_transaction": (
        "self",
        "session",
        "with_for_update",
    ),
    "prefect.server.schemas.filters.FlowRunFilterStateName._get_filter_list": ("self", "db"),
    # tasks/caching.py
    "prefect.cache_policies.CachePolicy.compute_key": ("self", "task_ctx", "inputs", "flow_parameters", "*"),
}
# Where Prefect calls what we override, and with what: an override that nobody calls would do nothing, without a word.
CALLERS = {
    "prefect.flow_engine.AsyncFlowRunEngine.start": {"setup_flow_run_suspension_request"},
    "prefect.flow_engine.FlowRunEngine.start": {"setup_flow_run_suspension_request"},
    "prefect.flow_engine._send_heartbeats": {"heartbeat_seconds"},
    "prefect.flow_engine.AsyncFlowRunEngine.begin_run": {"set_state"},
    "prefect.flow_engine.FlowRunEngine.begin_run": {"set_state"},
    "prefect.flow_engine.AsyncFlowRunEngine.initialize_run": {"update_flow_run", *VERSION_AND_POLICY},
    "prefect.flow_engine.FlowRunEngine.initialize_run": {"update_flow_run", *VERSION_AND_POLICY},
    f"{WORKER}._ensure_worker_channel": {"_record_work_pool_snapshot"},
    f"{WORKER}._initialize_after_sync": {"_setup_cancellation_observer"},
    f"{WORKER}._setup_cancellation_observer": {"_cancel_run", "_runs_task_group"},
    f"{WORKER}._submit_scheduled_flow_runs": {"_submit_run", "_submitting_flow_run_ids", "_limiter"},
    "prefect.server.database.configurations.AioSqliteConfiguration.begin_transaction": {"IMMEDIATE"},
    **{f"prefect.{where}.__init__": {"_block_document_id"} for where in ("tasks.Task", "flows.Flow")},
    **{f"prefect.results.ResultStore.{method}": {"read_path"} for method in ("_exists", "_aexists", "_read", "_aread")},
    **{
        f"prefect.results.ResultStore.{method}": {"write_path"}
        for method in ("_persist_result_record", "_apersist_result_record")
    },
    "prefect._internal.compatibility.blocks.call_explicitly_sync_block_method": {"_sync"},
}
PRIVATE_IMPORTS = {
    "deployments/resident/engine.py": {
        "prefect._flow_run_suspension.FlowRunSuspensionRequest",
        "prefect._flow_run_suspension.register_flow_run_suspension_request",
        "prefect._internal.engine.resolve_custom_flow_run_name",
        "prefect.flow_engine._flow_parameters",
    },
    "deployments/worker.py": {"prefect.workers.server._WorkerStartupHealthcheck"},
}


def part(path: str) -> Any:
    """What a dotted path names, in the longest prefix of it that is a module."""
    names = path.split(".")
    for count in range(len(names), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(names[:count]))
        except ModuleNotFoundError:
            continue
        for name in names[count:]:
            found = getattr(found, name)
        return found
    raise LookupError(path)


@flow
def nothing() -> None:
    """A flow."""


@flow
async def nothing_async() -> None:
    """A flow on an event loop."""


@pytest.mark.parametrize("path", CALLABLES)
def test_it_is_called_as_we_call_it(path: str) -> None:
    wanted = CALLABLES[path]
    found = tuple(inspect.signature(part(path)).parameters)
    if wanted[-1:] == ("*",):
        assert found[: len(wanted) - 1] == wanted[:-1]
    else:
        assert found == wanted


@pytest.mark.parametrize(("kind", "of"), [(FlowRunEngine, nothing), (AsyncFlowRunEngine, nothing_async)])
def test_an_engine_has_the_fields_that_we_set(kind: type[FlowRunEngine[..., Any]], of: Flow[..., Any]) -> None:
    assert {"flow", "parameters", "flow_run", "_raised", "_flow_run_name_set"} <= {each.name for each in fields(kind)}
    engine = kind(flow=of, parameters={})
    assert engine.heartbeat_seconds is None or engine.heartbeat_seconds > 0
    assert engine._flow_run_name_set is False


def code_of(function: Callable[..., Any]) -> list[CodeType]:
    """The code of a function and of all that is defined in it."""
    found = [inspect.unwrap(function).__code__]
    for code in found:
        found += [each for each in code.co_consts if isinstance(each, CodeType)]
    return found


def names_in(function: Callable[..., Any]) -> set[str]:
    """Attributes, keywords and words that a function uses."""
    found: set[str] = set()
    for code in code_of(function):
        found |= {*code.co_names, *(const for const in code.co_consts if isinstance(const, str))}
        found |= {str(name) for const in code.co_consts if isinstance(const, tuple) for name in const}
    return found


@pytest.mark.parametrize(("caller", "used"), CALLERS.items())
def test_prefect_calls_what_we_override(caller: str, used: set[str]) -> None:
    assert used <= names_in(part(caller))


def test_a_worker_has_the_attributes_that_we_read() -> None:
    worker = ProcessWorker(work_pool_name="none", name="one")
    wanted = {
        "_cancelling_observer",
        "_limiter",
        "_logger",
        "_runs_task_group",
        "_submitting_flow_run_ids",
        "_work_pool_name",
    }
    assert wanted <= vars(worker).keys()
    assert (worker.name, worker._work_pool_name, worker._submitting_flow_run_ids) == ("one", "none", set())


def test_the_commands_take_the_options_that_we_give() -> None:
    worker = inspect.signature(part("prefect.cli.worker.start")).parameters
    assert {"work_pool_name", "worker_name", "worker_type", "limit", "with_healthcheck"} <= worker.keys()
    deploy = inspect.signature(part("prefect.cli.deploy._commands.deploy")).parameters
    assert {"deploy_all", "prefect_file"} <= deploy.keys()


def test_a_health_check_knows_its_worker() -> None:
    check = part("prefect.workers.server._WorkerStartupHealthcheck")(10)
    assert check.worker is None
    assert check() is True  # well before there is a worker: what deployments/worker.py changes


@pytest.mark.parametrize(
    ("context", "client"), [(AsyncClientContext, PrefectClient), (SyncClientContext, SyncPrefectClient)]
)
def test_the_class_of_a_contexts_client_can_be_replaced(
    context: type[AsyncClientContext] | type[SyncClientContext], client: type[object]
) -> None:
    with prefect.settings.temporary_settings({prefect.settings.PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        made = context()
    assert type(made.client) is client
    made.client.__class__ = type("Ours", (client,), {})
    assert type(made.client).__name__ == "Ours"


def test_every_setting_that_we_make_is_known() -> None:
    """Prefect passes over a name that it does not know, without a word."""
    addresses = Addresses(*("http://127.0.0.1:9" for _ in fields(Addresses)))
    made = {name for name in environment(Settings(), addresses) if name.startswith("PREFECT_")}
    assert len(made) > 10
    unknown = {name for name in made if not hasattr(prefect.settings, name)}
    # Levels of its loggers are read by their places in its logging configuration.
    loggers = load_logging_config(DEFAULT_LOGGING_SETTINGS_PATH)["loggers"]
    levels = {f"PREFECT_LOGGING_LOGGERS_{name.upper().replace('.', '_')}_LEVEL" for name in loggers}
    assert unknown <= levels


def test_an_unreachable_api_is_told_by_these_words() -> None:
    """Of a RuntimeError, which tells nothing else: tasks/dispatch.py tells it from others."""
    source = inspect.getsource(part("prefect.client.orchestration"))
    assert "Failed to reach API" in source


def private_imports(source: str) -> set[str]:
    """What a module imports of Prefect under a name that begins with an underscore."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "prefect" and any(p[0] == "_" for p in name.split("."))}


def test_nothing_private_is_imported_elsewhere() -> None:
    files = [path for room in ("flows", "tasks", "deployments") for path in (CHECKOUT / room).rglob("*.py")]
    found = {str(path.relative_to(CHECKOUT)): private_imports(path.read_text()) for path in files}
    assert {path: names for path, names in found.items() if names} == PRIVATE_IMPORTS
