"""README's HTTP calls, executed as they stand there."""

import subprocess

import pytest

from deployments.demo_media import DemoMedia
from tests.readme import executed_block
from tests.system import DECISION_SECONDS, System


@pytest.mark.parametrize(("block", "answer"), [("upload-api", '"decision": "match"'), ("foreign-upload", "\nMatch\n")])
def test_a_block_of_the_readme_ends_with_a_match(
    block: str, answer: str, system: System, demo_media: DemoMedia
) -> None:
    variables = {
        "KYCFLOW_API": system.addresses.upload_api,
        **system.prefect_variables,
        "STORAGE": str(system.settings.state_dir / "storage"),
        "ID_IMAGE": str(demo_media.genuine_card),
        "SELFIE_VIDEO": str(demo_media.selfie_video),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", executed_block(block)],
        env=dict(system.environment) | variables,
        capture_output=True,
        text=True,
        timeout=DECISION_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert answer in done.stdout
