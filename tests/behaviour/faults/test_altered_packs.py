"""Every altered pack of the emulator, over HTTP: the rows that it leaves without an answer are requested again."""

import pytest

from connectors.emulator.faults.altered_packs import ALTERED_PACKS
from connectors.emulator.server import EmulatorOptions, EmulatorServer
from tests.conftest import Cli, ReadTable, Workspace
from tests.support.exhaustive import marks

FORMS = {
    "chat": 'endpoint: chat, messages: [{user: "{{ text }}"}]',
    "responses": 'endpoint: responses, input: "{{ text }}"',
}
TYPED = ", output: {topic: {type: string, enum: [billing, bug, other]}, is_urgent: boolean}"
ROWS = 6
REQUESTS = {"pack-drop": 2, "pack-repeat": 2, "pack-rename": 2, "pack-reorder": 1}
"""Fault of the first reply -> requests."""


@pytest.mark.parametrize(
    ("form", "output"),
    [
        pytest.param("chat", TYPED, id="chat, typed"),
        pytest.param("responses", "", id="responses, text"),
        pytest.param("chat", "", id="chat, text", marks=marks(True)),
        pytest.param("responses", TYPED, id="responses, typed", marks=marks(True)),
    ],
)
@pytest.mark.parametrize("fault", [*ALTERED_PACKS, "400"])
def test_every_row_is_answered_although_the_first_pack_is_altered(
    workspace: Workspace, cli: Cli, read: ReadTable, fault: str, form: str, output: str
) -> None:
    workspace.csv(ROWS)
    # The first request of a typed step is a row alone, to learn the structured mode.
    script = f"200,{fault}" if output else fault
    with EmulatorServer(EmulatorOptions(script=script)) as server:
        workspace.write("rowmill.yaml", f'providers: {{test: {{base_url: "{server.base_url}"}}}}\n')
        steps = f"[{{name: a, provider: test, model: gpt-4o-mini, pack: {{rows: 20}}, {FORMS[form]}{output}}}]"
        report = cli.run(workspace.job(steps=steps))
    assert (report["exit_code"], report["rows_ok"]) == (0, ROWS)
    assert len(read(workspace.folder / "out")) == ROWS
    if fault in REQUESTS:
        assert report["requests"] == REQUESTS[fault] + bool(output)
    else:
        assert report["requests"] > 2
