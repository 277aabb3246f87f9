"""The command line against a running system."""

import json
import re
from dataclasses import replace
from pathlib import Path

from deployments.demo_media import DemoMedia
from tests.system import System, eventually


def test_the_demo_shows_every_decision_as_expected(system: System) -> None:
    done = system.kycflow("demo", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(done.stdout)
    assert {outcome["actual"] for outcome in outcomes} == {"match", "no_match", "rejected", "refused", "expired"}
    assert all(outcome["right"] for outcome in outcomes)
    pictures = [Path(outcome["picture"]) for outcome in outcomes if outcome["similarity"] is not None]
    assert len(pictures) == 3
    assert all(picture.read_bytes().startswith(b"\xff\xd8") for picture in pictures)


def test_submit_ends_with_0_for_a_match_and_1_for_another_decision(
    system: System, demo_media: DemoMedia, session_id: str
) -> None:
    match = system.kycflow("submit", str(demo_media.genuine_card), str(demo_media.selfie_video), "--json")
    assert match.returncode == 0, match.stderr
    assert json.loads(match.stdout)["decision"] == "match"
    other = system.kycflow(
        "submit", str(demo_media.impostor_card), str(demo_media.selfie_video), "--session", session_id
    )
    assert other.returncode == 1, other.stderr
    assert "no_match" in other.stdout

    status = system.kycflow("status", session_id, "--json")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["reason"] == "SIMILARITY_INSUFFICIENT"


def test_a_refusal_is_one_clear_line_and_exit_code_2(system: System, demo_media: DemoMedia) -> None:
    refused = system.kycflow("submit", str(demo_media.selfie_video), str(demo_media.selfie_video))
    assert refused.returncode == 2
    assert re.search(r"error: NOT_AN_IMAGE: .+", refused.stderr)
    assert "Traceback" not in refused.stderr

    unknown = system.kycflow("status", "nobody")
    assert (unknown.returncode, "UNKNOWN_SESSION" in unknown.stderr) == (2, True)


def test_a_session_is_followed_and_deleted(system: System, demo_media: DemoMedia, session_id: str) -> None:
    submitted = ("submit", str(demo_media.genuine_card), str(demo_media.selfie_video), "--session", session_id)
    assert system.kycflow(*submitted).returncode == 0
    lines = json.loads(system.kycflow("audit", session_id, "--json").stdout)
    events = [line["event"] for line in lines if line["attempt"] == 1]
    assert events[:3] == ["attempt_opened", "run_created", "file_stored"]
    assert "comparison_stored" in [line["event"] for line in lines if line["attempt"] is None]
    assert (lines[-1]["to_status"], lines[-1]["detail"]) == ("decided", "SIMILARITY_SUFFICIENT")

    decided = system.kycflow("resume", session_id)
    assert (decided.returncode, "SESSION_DECIDED" in decided.stderr) == (2, True)
    swept = system.kycflow("sweep", "--dry-run")
    assert (swept.returncode, session_id in swept.stdout) == (0, False), swept.stderr

    deleted = system.kycflow("delete", session_id, "--yes")
    assert (deleted.returncode, f"Session {session_id} is deleted." in deleted.stdout) == (0, True), deleted.stderr
    status = system.kycflow("status", session_id)
    assert (status.returncode, "SESSION_DELETED" in status.stderr) == (2, True)
    assert "media_erased" in system.kycflow("audit", session_id).stdout


def test_doctor_finds_a_running_system_in_order(system: System) -> None:
    done = system.kycflow("doctor", "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == 0, findings
    assert {"Prefect", "Deployment", "Work pool", "Upload API", "Weights", "Database"} <= {f["what"] for f in findings}
    # Anti-spoofing has no weights that could be fetched: it is off, and said to be.
    assert {f["what"] for f in findings if f["state"] != "ok"} == {"Anti-spoofing"}


def test_a_second_system_in_the_same_folder_is_refused(system: System) -> None:
    second = system.kycflow("up")
    assert second.returncode == 2
    assert "already runs" in second.stderr


def next_sweeps(system: System) -> set[str]:
    """When the schedule's next sweeps begin."""
    query = {
        "deployments": {"name": {"any_": ["sweep-sessions"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    with system.prefect_http() as prefect:
        runs = prefect.post("/flow_runs/filter", json=query).json()
    return {run["expected_start_time"] for run in runs if run["auto_scheduled"]}


def test_deploying_again_changes_nothing(system: System) -> None:
    planned = next_sweeps(system)
    environment = dict(system.environment) | system.prefect_variables
    again = replace(system, environment=environment).kycflow("deploy")
    assert again.returncode == 0, again.stderr
    # Prefect plans anew a moment later. Other times would leave a minute without a sweep.
    eventually(lambda: next_sweeps(system) & planned or None, 60)
