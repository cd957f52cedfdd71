"""What `-C` may say, and which rows can be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from seatrial.errors import RetryableError, UserError
from seatrial.plugin.errors import DeploymentError, as_mlflow
from seatrial.plugin.options import Options
from seatrial.plugin.predictions import ask, rows_of
from tests.controller.server import serving

PLAIN = {"engine.base": "models:/base/1", "http.allow_anonymous": "true"}


def test_fields_make_a_service_with_values_of_their_types():
    config = Options.of({**PLAIN, "engine.replicas": "2", "trial.alpha": "0.1"}).service("chat")
    assert (config.name, config.engine.base) == ("chat", "models:/base/1")
    assert (config.engine.replicas, config.http.allow_anonymous, config.trial.alpha) == (2, True, 0.1)


def test_fields_change_what_was_there_before_and_nothing_else():
    before = Options.of({**PLAIN, "engine.replicas": 2}).service("chat").model_dump(mode="json")
    config = Options.of({"engine.dtype": "float32"}).service("chat", before)
    assert (config.engine.replicas, config.engine.dtype) == (2, "float32")


def test_every_bad_field_is_one_line_with_its_option():
    with pytest.raises(DeploymentError) as caught, as_mlflow():
        Options.of({**PLAIN, "engine.replica": "2", "engine.dtype": "f3"}).service("chat")
    lines = sorted(caught.value.message.splitlines())
    assert len(lines) == 2
    assert lines[0].startswith("-C engine.dtype: 'f3': ")
    assert lines[1] == "-C engine.replica: unknown field: did you mean `replicas`?"
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"promot": "true"}, "-C promot: unknown option"),
        ({"promote": "perhaps"}, "-C promote: perhaps: give true or false"),
        ({"engine.base": Path("base")}, f"-C engine.base: {Path('base')!r}: no plain value: "),
        ({"as": "winner"}, "-C as: winner: give challenger, challenger-b, champion or shadow"),
        ({"as": f"challenger-{'b' * 22}"}, f"-C as: challenger-{'b' * 22}: give challenger,"),
        ({"as": "7"}, "-C as: 7: give challenger"),
        ({"as": "challenger-b", "promote": "true"}, "-C as: challenger-b: given beside promote=true"),
        ({"timeout_s": "soon"}, "-C timeout_s: soon: give seconds"),
        ({"timeout_s": ".nan"}, "-C timeout_s: nan: give seconds"),
        ({"engine.base": "[a"}, "-C engine.base: [a: no YAML value"),
        ({"config": "service.yaml", "engine.base": "a"}, "-C engine.base: given beside `config`"),
    ],
)
def test_options_that_say_nothing_are_refused(config: dict[str, Any], said: str):
    with pytest.raises(UserError) as caught:
        Options.of(config)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("config", "alias"),
    [
        ({}, None),
        ({"promote": "true"}, "champion"),
        ({"promote": "false", "as": "challenger-b"}, "challenger-b"),
        ({"as": "shadow"}, "shadow"),
    ],
)
def test_an_update_says_what_the_model_becomes(config: dict[str, Any], alias: str | None):
    assert Options.of(config).alias == alias


def test_a_file_of_another_service_is_refused(tmp_path: Path):
    file = tmp_path / "service.yaml"
    file.write_text("name: other\nengine: {base: 'models:/base/1'}\nhttp: {allow_anonymous: true}\n")
    with pytest.raises(UserError, match="name: other: is not the deployment chat"):
        Options.of({"config": str(file)}).service("chat")
    assert Options.of({"config": str(file)}).service("other").name == "other"


def test_tables_dicts_and_files_become_rows_without_empty_cells(tmp_path: Path):
    csv = tmp_path / "rows.csv"
    csv.write_text("prompt,user,max_tokens\nHello,ada,\nBye,,4\n")
    rows = rows_of(str(csv))
    assert isinstance(rows[1]["max_tokens"], int)
    assert rows == [{"prompt": "Hello", "user": "ada"}, {"prompt": "Bye", "max_tokens": 4}]
    json = tmp_path / "rows.json"
    json.write_text('[{"messages": [{"role": "user", "content": "Hi"}]}]')
    asked = [{"messages": [{"role": "user", "content": "Hi"}]}]
    assert rows_of(json) == rows_of(asked[0]) == rows_of(pd.DataFrame(asked)) == asked


def test_a_row_that_asks_for_a_stream_is_refused():
    with pytest.raises(UserError, match="inputs: row 2: stream: True: "):
        rows_of([{"prompt": "a", "stream": False}, {"prompt": "a", "stream": True}])


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{}]}'])
def test_what_answers_but_is_no_service_is_said_in_a_line(body: bytes):
    async def answer(_request: Request) -> Response:
        return Response(body)

    app = Starlette(routes=[Route("/v1/completions", answer, methods=["POST"])])
    with serving(app) as url, pytest.raises(RetryableError, match="is no service"):
        ask("chat", url, [{"prompt": "a"}])


@pytest.mark.parametrize("inputs", [None, [], 3, [{"text": "a"}], {"prompt": "a", "messages": []}, "no.csv"])
def test_what_is_no_row_is_refused(inputs: Any):
    with pytest.raises(UserError, match=r"^inputs: "):
        rows_of(inputs)
