"""schemathesis asks the service whatever its description allows and forbids."""

import json
import subprocess
import sys

import pytest

from tallrec.serve.service import Settings
from tests.serve.test_api import TOKEN


@pytest.fixture
def fuzz(tmp_path):
    """Runs schemathesis on an API; what it finds is in its report."""

    def run(client, described, *options):
        file = tmp_path / "openapi.json"
        file.write_text(json.dumps(described), encoding="utf-8")
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", str(file)),
                *("--url", f"http://127.0.0.1:{client.port}", "--seed", "1"),
                *("--header", f"Authorization: Bearer {TOKEN}", "--generation-database", "none"),
                # What fits the description may still be refused, such as an unknown item.
                *("-n", "15", "--exclude-checks", "positive_data_acceptance"),
                *options,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "12 selected / 12 total" in done.stdout

    return run


def test_no_question_breaks_the_service_or_its_description(serving, model, fuzz):
    with serving(model, Settings(token=TOKEN)) as client:
        fuzz(client, client.get("/openapi.json").json)


def test_questions_about_the_catalogue_are_answered_as_described(serving, model, fuzz):
    """The same with ids that exist, so that most questions reach model and database."""
    with serving(model, Settings(token=TOKEN)) as client:
        described = client.get("/openapi.json").json
        schemas = described["components"]["schemas"]
        for name in ("ScoreRequest", "RankRequest", "ExplainRequest", "FeedbackRequest", "Event"):
            known(schemas[name]["properties"])
        fuzz(client, described, "--mode", "positive")
        told = client.get("/metrics", Authorization=f"Bearer {TOKEN}").text
    assert 'tallrec_requests_total{route="/v1/explain",status="200"}' in told
    assert 'tallrec_feedback_total{liked="true"}' in told


def known(part):
    """Ids of items become those of the catalogue, wherever they are in a schema."""
    if isinstance(part, dict):
        if part.get("maxLength") == 256:
            part["enum"] = [f"i{n}" for n in range(22)]
        for one in part.values():
            known(one)
    elif isinstance(part, list):
        for one in part:
            known(one)
