"""The document against the running service: no answer that is not described, none of 5xx, whatever is asked.

`python -m tests.contract` runs the same for as long as one likes.
"""

import pytest

from streamorch import openapi
from streamorch.app import with_routes
from tests.contract import run

SEED = 7
EXAMPLES = 4
CHAINS = 60
DESCRIBED = {
    f"{method.upper()} {path}"
    for path, of_path in openapi.document(with_routes())["paths"].items()
    for method in of_path.keys() - {"parameters"}
} - {"GET /openapi.json"}  # schemathesis does not ask where it has its document from; test_openapi.py does
CHECKS = {
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
    "ignored_auth",
    # It needs callers who each own something, and a scope is for all there is: it passes whatever happens.
    "object_level_authorization",
}


@pytest.mark.slow
def test_every_answer_is_as_the_document_says(tmp_path):
    outcome = run(tmp_path, examples=EXAMPLES, chains=CHAINS, seed=SEED)
    assert outcome.passed, outcome.told
    # And it was really asked.
    assert outcome.checks == CHECKS
    assert outcome.answers.keys() >= DESCRIBED
    for label in DESCRIBED:
        counted = outcome.answers[label]
        assert any(status < 300 for status in counted), label
        assert not [status for status in counted if status >= 500], label
    # Which links are followed is a matter of luck; each is seen to work in test_openapi.py.
    assert len(outcome.followed) >= 5
