"""The API is asked everything that its own description allows, and much that it does not.

Requests are made from ``/openapi.json`` by schemathesis: valid ones, and ones that break the description in one place.
Whatever is asked, the answer is one that the description names.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from serving.server.running import TOKEN, WRITER, checked, picture

schemathesis = pytest.importorskip("schemathesis")
requests = pytest.importorskip("requests")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

ITEMS = [f"v{at}" for at in range(20, 32)]
#: What is there, by the names under which it stands in a request.
KNOWN: dict[str, list[Any]] = {
    **dict.fromkeys(("item", "items", "history", "exclude", "candidates"), ITEMS),
    **{"user": ["u00", "u07"], "title": ["Tango rehearsal", "Soup"], "cover": [picture()]},
}
CONFORM = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
VALID, BROKEN = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
Answered = Callable[[Any, httpx.Response], None]


class Api:
    """An application in this process, its folder, and its operations."""

    def __init__(self, client: httpx.Client, folder: Path) -> None:
        self.client, self.folder = client, folder
        described = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        described.config.generation.update(with_security_parameters=False)
        self.operations = [found.ok() for found in described.get_all_operations()]

    def send(self, case: Any, headers: dict[str, str]) -> httpx.Response:
        words = case.as_transport_kwargs(base_url="http://testserver")
        words["headers"] = {**words.get("headers", {}), **headers}
        made = requests.Request(**words).prepare()
        return self.client.request(made.method, made.url, headers=dict(made.headers), content=made.body)

    def files(self) -> dict[str, str]:
        """Every file of the bundle, and what is in it."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in found
        }

    @property
    def writes(self) -> list[Any]:
        """Operations that change something."""
        return [one for one in self.operations if "write" in (one.tags or ())]

    def fuzz(
        self, operations: list[Any], examples: int, senders: list[dict[str, str]], answered: Answered
    ) -> Counter[str]:
        """Ask operations, with the headers of every sender; how many answers had which status."""
        statuses: Counter[str] = Counter()
        for at, operation in enumerate(operations):

            def valid(case: Any) -> None:
                ask(case, CONFORM)

            def broken(case: Any) -> None:
                # A number in a form is a text like any other, so what breaks the types of a form need not be refused.
                form = case.media_type not in (None, "application/json")
                ask(case, CONFORM if form else [*CONFORM, checks.negative_data_rejection])

            def ask(case: Any, wanted: list[Any]) -> None:
                for headers in senders:
                    answer = self.send(case, headers)
                    statuses[f"{case.operation.label} {answer.status_code}"] += 1
                    checked(answer, *range(200, 500))
                    # Too long is too long, whatever else is wrong with it.
                    case.validate_response(answer, checks=CONFORM if answer.status_code == 413 else wanted)
                    answered(case, answer)

            # Every operation draws the same numbers; moved on, what one removes is not what the next one asks for.
            which = st.integers(0, 2 * len(ITEMS)).map(lambda drawn, at=at: (drawn % 2, drawn // 2 + 5 * at))
            half = st.builds(aimed, operation.as_strategy(VALID), which)
            quiet = settings(
                max_examples=examples,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],  # what failed is printed; to make it smaller would take minutes
                suppress_health_check=list(HealthCheck),
            )
            quiet(given(half)(valid))()
            with suppress(Unsatisfiable):  # an operation without parameters cannot be asked wrongly
                quiet(given(operation.as_strategy(BROKEN))(broken))()
        return statuses


def aimed(case: Any, which: tuple[int, int]) -> Any:
    """The same request about what is there; every second one stays as it is."""
    stays, place = which
    if stays:
        return case

    def known(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: known(inner, key) for key, inner in value.items()}
        if isinstance(value, list):
            return [known(inner, name) for inner in value]
        there = KNOWN.get(name) if isinstance(value, str | bytes) else None
        return value if there is None else there[place % len(there)]

    case.path_parameters, case.body = known(case.path_parameters), known(case.body)
    return case


@pytest.fixture(params=[TOKEN, None], ids=["token", "no-token"])
def token(request) -> str | None:
    return request.param


@pytest.fixture
def api(copied: Path, token: str | None) -> Iterator[Api]:
    from fastapi.testclient import TestClient

    from firstlight.serving.bundle import Bundle
    from firstlight.serving.server.app import create_app
    from firstlight.serving.server.settings import Settings

    app = create_app(Bundle.open, copied, Settings(token=token, poll_seconds=0))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Api(client, copied)


def fuzz_with_token(api: Api, examples: int) -> Counter[str]:
    before = api.files()

    def answered(case: Any, answer: httpx.Response) -> None:
        assert answer.status_code not in (401, 403)

    statuses = api.fuzz(api.operations, examples, [WRITER], answered)
    assert api.files() != before
    return statuses


@pytest.mark.parametrize("token", [TOKEN], indirect=True)
def test_every_answer_is_one_that_is_described(api):
    statuses = fuzz_with_token(api, 12)
    # The requests reach what they are meant for: every operation does its work at least once.
    done = {label.rsplit(" ", 1)[0] for label in statuses if label.rsplit(" ", 1)[1] < "300"}
    asked = {f"{operation.method.upper()} {operation.path}" for operation in api.operations}
    assert asked - done <= {"POST /v1/rollback"}, statuses


def fuzz_without_token(api: Api, token: str | None, examples: int) -> None:
    """Whatever is asked without the token, the folder stays the same to the byte."""
    before, version = api.files(), api.client.get("/version").json()
    refused: Counter[str] = Counter()

    def answered(case: Any, answer: httpx.Response) -> None:
        if "write" in (case.operation.tags or ()):
            assert answer.status_code in (401, 403)
            refused[case.operation.label] += 1

    strangers = [{}, {"Authorization": "Bearer "}, {"Authorization": "Bearer guess"}]
    if token is None:  # what this one reads, the other one reads, too
        api.fuzz(api.writes, examples, [*strangers, WRITER], answered)
    else:
        api.fuzz(api.operations, examples, strangers, answered)
    assert len(api.writes) == len(refused) == 7
    assert api.files() == before
    assert api.client.get("/version").json() == version


def test_nothing_is_written_without_the_token_whatever_is_asked(api, token):
    fuzz_without_token(api, token, 3)


@pytest.mark.slow
@pytest.mark.parametrize("token", [TOKEN], indirect=True)
def test_every_answer_is_one_that_is_described_at_length(api):
    fuzz_with_token(api, 100)


@pytest.mark.slow
def test_nothing_is_written_without_the_token_at_length(api, token):
    fuzz_without_token(api, token, 40)
