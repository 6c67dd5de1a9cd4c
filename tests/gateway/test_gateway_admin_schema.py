"""The admin API does what its own OpenAPI document says, whatever it is sent: schemathesis reads it and asks."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import positive_data_acceptance
from schemathesis.config import SchemathesisConfig
from schemathesis.core.result import Ok
from stack import open_stack

ENDLESS = "/admin/v1/events"  # a stream: what it says is `test_gateway_admin_parts`'s to check
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # schemathesis's own
FEW, MANY = 8, 60
NOT_SAID = [positive_data_acceptance]  # what fits the document may still name a model or an incident that is not there


def token() -> str:
    return (Path.home() / ".local/state/memos_llm/admin_token").read_text().strip()


def ask(url: str, examples: int, mode: GenerationMode) -> Counter[str]:
    """Every operation, by examples that fit the document or do not; how many there were of each."""
    asked: Counter[str] = Counter()
    headers = {"Authorization": f"Bearer {token()}"}
    with requests.Session() as client:
        client.trust_env = False
        document = client.get(f"{url}/admin/v1/openapi.json", headers=headers).json()
        schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig())
        for found in schema.get_all_operations():
            assert isinstance(found, Ok)
            operation = found.ok()
            if operation.path == ENDLESS:
                continue

            def check(case: Case[Any]) -> None:
                asked[case.operation.label] += 1
                case.call_and_validate(base_url=url, session=client, headers=headers, excluded_checks=NOT_SAID)

            limits = settings(
                max_examples=examples,
                database=None,
                phases=[Phase.explicit, Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )
            limits(given(case=operation.as_strategy(generation_mode=mode))(check))()
    return asked


@pytest.mark.parametrize("mode", list(GenerationMode))
async def test_every_operation_keeps_to_its_document(tmp_path: Path, mode: GenerationMode) -> None:
    await play(tmp_path, FEW, mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
async def test_every_operation_keeps_to_its_document_for_longer(tmp_path: Path, mode: GenerationMode) -> None:
    await play(tmp_path, MANY, mode)


async def play(folder: Path, examples: int, mode: GenerationMode) -> None:
    async with open_stack(folder) as stack:
        asked = await asyncio.to_thread(ask, stack.url, examples, mode)
        internal = [line for line in (await stack.metrics()).splitlines() if "internal_errors_total{" in line]
    assert {"GET /admin/v1/status", "GET /admin/v1/incidents/{id}", "POST /admin/v1/shift"} <= asked.keys()
    assert internal == []
