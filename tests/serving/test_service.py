"""A service as users meet it: Ray Serve, HAProxy, vLLM, MLflow and the store, none of them pretended."""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from sqlalchemy import text

from tests.serving import stage
from tests.serving.stand import ENGINE, FULL, REPLICAS, SERVICE, Stand

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROXY_TOLD_S = 5.0
BOTH_READY = {"1": "ready", "2": "ready"}
MESSAGES = [{"role": "user", "content": "Where does the ship sail?"}]


def test_every_user_keeps_an_arm_and_each_arm_answers_differently(stand: Stand) -> None:
    client = stand.client()
    seen: dict[str, set[tuple[str, str]]] = collections.defaultdict(set)
    for index in range(24):
        answer = client.chat.completions.with_raw_response.create(
            model=SERVICE, messages=MESSAGES, user=f"reader-{index % 12}", max_tokens=12, temperature=0
        )
        version = answer.headers["x-seatrial-version"]
        body = answer.parse()
        assert body.model == f"{SERVICE}@{version}"
        assert body.id == f"chatcmpl-{answer.headers['x-seatrial-request-id']}"
        assert answer.headers["x-seatrial-trial"] == "svc-1"
        assert body.usage.completion_tokens == 12
        seen[f"reader-{index % 12}"].add((answer.headers["x-seatrial-arm"], version))
    assert all(len(arms) == 1 for arms in seen.values())
    assert {arm for arms in seen.values() for arm in arms} == {("champion", "1"), ("challenger", "2")}
    rows = stand.exposures(24, trial_id="svc-1")
    assert len(rows) == 24
    assert {(row["arm"], row["served_version"]) for row in rows} == {("champion", "1"), ("challenger", "2")}
    assert all(row["status"] == 200 and row["completion_tokens"] == 12 for row in rows)
    answers = {model: text_of(client, f"{SERVICE}@{model}") for model in ("1", "2", "champion", "challenger")}
    assert answers["1"] == answers["champion"] != answers["challenger"] == answers["2"]
    for version in ("1", "2"):
        expected = stage.greedy_answer(stand.base, stand.base.parent / f"adapter{version}", MESSAGES, 12)
        assert answers[version] == expected, "token for token what transformers and PEFT give"


def text_of(client: openai.OpenAI, model: str) -> str:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=12, temperature=0)
    assert answer.model == model.replace("champion", "1").replace("challenger", "2")
    return str(answer.choices[0].message.content)


def test_streams_name_their_version_in_every_chunk_and_come_piece_by_piece(stand: Stand) -> None:
    client = stand.client()
    # A machine that is busy for a moment keeps the pieces of one stream together, not those of each.
    early, chunks = max((streamed(client) for _ in range(3)), key=lambda stream: stream[0])
    assert early > 1 / 4, "pieces were read while later ones were computed"
    (model,) = {chunk.model for chunk in chunks}
    assert model in ("svc@1", "svc@2")
    assert len(chunks) > 10
    assert chunks[-1].usage.completion_tokens == 60
    request_id = chunks[0].id.removeprefix("chatcmpl-")
    (row,) = stand.exposures(1, request_id=request_id)
    assert row["served_version"] == model[-1]
    assert row["completion_tokens"] == 60
    assert row["ttft_s"] < row["latency_s"]


def streamed(client: openai.OpenAI) -> tuple[float, list[Any]]:
    """The pieces of a stream, and the share of them that came in the first 70% of its time."""
    began = time.perf_counter()
    stream = client.chat.completions.create(
        model=SERVICE,
        messages=MESSAGES,
        user="streamer",
        max_tokens=60,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks, arrivals = [], []
    for chunk in stream:
        chunks.append(chunk)
        arrivals.append(time.perf_counter() - began)
    early = sum(arrival < 0.7 * arrivals[-1] for arrival in arrivals)
    return early / len(arrivals), chunks


def test_text_completions_and_the_list_of_models(stand: Stand) -> None:
    client = stand.client()
    answer = client.completions.create(model=SERVICE, prompt="The ship", max_tokens=5)
    assert answer.model in ("svc@1", "svc@2")
    assert answer.id.startswith("cmpl-")
    names = [card.id for card in client.models.list()]
    assert names == ["svc", "svc@champion", "svc@challenger", "svc@1", "svc@2"]


def test_errors_are_what_the_openai_client_expects(stand: Stand) -> None:
    client = stand.client()
    with pytest.raises(openai.AuthenticationError):
        stand.client(api_key="sk-wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="svc@99", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=SERVICE, messages=MESSAGES, n=5)
    assert refused.value.param == "n"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model=SERVICE, messages=MESSAGES, extra_body={"prompt_embeds": "AA"})
    assert unknown.value.param == "prompt_embeds"
    long = [{"role": "user", "content": "ship " * 400}]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=SERVICE, messages=long)
    with httpx.Client(base_url=stand.cluster.serve_url) as http:
        assert http.get("/health").status_code == 200
        for path in ("/metrics", "/docs", "/openapi.json", "/version", "/tokenize", "/-/routes"):
            answer = http.get(path, headers={"Authorization": f"Bearer {stage.KEY}"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_route")
        assert http.get("/-/healthz").text == "success"
        answer = http.get("/v1/models", headers={"X-Request-Id": "order-17"})
        assert answer.status_code == 401
        assert answer.headers.get_list("x-request-id") == ["order-17"]
        assert answer.headers["x-seatrial-request-id"] != "order-17"
        big = {"model": SERVICE, "prompt": "x" * 300_000}
        headers = {"Authorization": f"Bearer {stage.KEY}"}
        assert http.post("/v1/completions", json=big, headers=headers).status_code == 413


def test_a_request_without_max_tokens_gets_at_most_the_services(stand: Stand) -> None:
    answer = stand.client().chat.completions.create(
        model=SERVICE, messages=MESSAGES, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 64


def test_outcomes_join_the_exposure_by_the_answers_id(stand: Stand) -> None:
    answer = stand.client().chat.completions.create(
        model=SERVICE, messages=MESSAGES, user="judge", max_tokens=4
    )
    body = {"request_id": answer.id, "metric": "resolved", "value": 1}
    for _ in range(2):
        sent = httpx.post(
            f"{stand.cluster.serve_url}/v1/outcomes",
            json=body,
            headers={"Authorization": f"Bearer {stage.KEY}"},
        )
        assert sent.json() == {"accepted": 1, "rejected": []}
    query = text(
        "select count(*) from outcomes join exposures using (request_id) where request_id = :id and value = 1"
    )

    def count() -> int:
        with stand.store.engine.connect() as connection:
            return int(connection.execute(query, {"id": answer.id.removeprefix("chatcmpl-")}).scalar_one())

    stage.wait_until(count, 20, "the outcome")
    assert count() == 1


def test_a_client_that_leaves_frees_the_engine(stand: Stand) -> None:
    stand.configure(stand.adapters[:2], http={"max_tokens": 240})
    body = {"model": SERVICE, "prompt": "a", "max_tokens": 240, "ignore_eos": True, "stream": True}
    headers = {"Authorization": f"Bearer {stage.KEY}"}
    url = f"{stand.cluster.serve_url}/v1/completions"

    def latency_s(user: str, *, leaves: bool) -> float:
        with httpx.stream("POST", url, json={**body, "user": user}, headers=headers) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            if not leaves:
                assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
        (row,) = stand.exposures(1, request_id=answer.headers["x-seatrial-request-id"])
        assert (row["status"], row["error"]) == (200, None), "its first token was read"
        return float(row["latency_s"])

    whole_s = latency_s("stays", leaves=False)
    left_s = [latency_s(f"leaves-{number}", leaves=True) for number in range(3)]
    assert statistics.median(left_s) < whole_s / 2, "nobody computes the rest"
    stand.configure(stand.adapters[:2])


async def test_swapping_versions_under_load_fails_no_request(stand: Stand) -> None:
    stop = asyncio.Event()
    results: collections.Counter[Any] = collections.Counter()
    made = stand.adapters

    async def reader(http: httpx.AsyncClient, number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            body = {"model": SERVICE, "messages": MESSAGES, "max_tokens": 4, "user": f"{number}-{turn}"}
            is_stream = turn % 2 == 0
            try:
                answer = await http.post("/v1/chat/completions", json={**body, "stream": is_stream})
            except httpx.HTTPError as error:
                results[repr(error)] += 1
                continue
            whole = answer.content.endswith(b"data: [DONE]\n\n") if is_stream else answer.json()["choices"]
            results[answer.status_code if whole else "cut off"] += 1
            results[f"version {answer.headers.get('x-seatrial-version')}"] += 1

    headers = {"Authorization": f"Bearer {stage.KEY}"}
    async with httpx.AsyncClient(base_url=stand.cluster.serve_url, headers=headers, timeout=60) as http:
        readers = [asyncio.create_task(reader(http, number)) for number in range(6)]
        await asyncio.sleep(2)
        for preload, champion, challenger in (
            (made, 0, 2),  # a new version comes while two serve
            (made[1:], 1, None),  # the champion changes and its predecessor leaves
            (made, 2, 0),  # and comes back
            (made[:2], 0, 1),
        ):
            await asyncio.to_thread(stand.configure, preload, champion=champion, challenger=challenger)
            await asyncio.sleep(1.5)
        stop.set()
        await asyncio.gather(*readers)
    print(dict(results))
    versions = {name: count for name, count in results.items() if str(name).startswith("version")}
    assert set(versions) == {"version 1", "version 2", "version 3"}
    assert results[200] == sum(versions.values()) > 50
    assert not [name for name in results if name != 200 and name not in versions], results


def test_a_tampered_version_is_refused_and_the_service_goes_on(stand: Stand) -> None:
    from mlflow import MlflowClient

    version, _ = stand.adapters[2]
    client = MlflowClient(tracking_uri=stand.mlflow_url, registry_uri=stand.mlflow_url)
    record = client.get_model_version(SERVICE, version)
    broken = stand.base.parent / "broken"
    stage.copy_of(stand.base.parent / "adapter3", broken)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    (broken / "seatrial.json").write_text((stand.base.parent / "adapter3" / "seatrial.json").read_text())
    client.log_artifacts(record.run_id, str(broken), "other")
    artifacts = client.get_run(record.run_id).info.artifact_uri
    fake = client.create_model_version(
        SERVICE, f"{artifacts}/other", record.run_id, tags={"seatrial.digest": "f" * 64}
    )
    before = stand.revisions()
    stand.configure(
        [*stand.adapters[:2], (str(fake.version), "f" * 64)], challenger=2, wait=False, champion=0
    )

    def states() -> list[str]:
        return [row["loaded"].get(str(fake.version), "") for row in stand.replicas()]

    stage.wait_until(lambda: all(state.startswith("error") for state in states()), 60, "the refusals")
    assert all("adapter_model.safetensors" in state for state in states())
    logs = [Path(f"/proc/{pid}/fd/2").read_text() for pid in stand.pids().values()]
    assert all(f"version {fake.version} is not loaded" in log for log in logs), "read at once, not buffered"
    assert stand.revisions() == before, "the old table stays in force"
    assert text_of(stand.client(), "svc@1")
    assert stand.client().chat.completions.create(model=SERVICE, messages=MESSAGES, max_tokens=2)
    stand.configure(stand.adapters[:2])


@pytest.mark.soak
def test_a_full_model_answers_in_an_application_of_its_own_and_its_loss_costs_no_request(
    stand: Stand,
) -> None:
    stand.is_full_deployed = True
    stand.configure([stand.adapters[0], stand.full], challenger=1, full=True, wait=False)
    stand.cluster.wait_running(FULL)
    revision = f"r{stand.revision}"
    stand.wait_revision(revision)
    client = stand.client()
    pinned = client.chat.completions.create(model="svc@4", messages=MESSAGES, max_tokens=8, temperature=0)
    assert pinned.model == "svc@4"
    assert pinned.choices[0].message.content != text_of(client, "svc@1")
    stream = client.chat.completions.create(model="svc@4", messages=MESSAGES, max_tokens=8, stream=True)
    assert {chunk.model for chunk in stream} == {"svc@4"}
    seen = set()
    for number in range(12):
        answer = client.chat.completions.create(
            model=SERVICE, messages=MESSAGES, user=f"full-{number}", max_tokens=4
        )
        seen.add(answer.model)
    assert seen == {"svc@1", "svc@4"}

    stand.is_full_deployed = False
    config = stage.user_config(SERVICE, [stand.adapters[0], stand.full], revision=revision, challenger=1)
    with ThreadPoolExecutor(1) as pool:
        is_over = threading.Event()
        asking = pool.submit(ask_until, is_over, client)
        try:
            time.sleep(1)
            stand.put(config | {"preload": preload_of(stand)})
            stage.wait_until(
                lambda: stand.cluster.applications().keys() == {SERVICE}, 120, "the end of the full model"
            )
        finally:
            is_over.set()
    assert set(asking.result()) == {"svc@1", "svc@4"}, "it went while it was asked"
    models = [
        client.chat.completions.create(
            model=SERVICE, messages=MESSAGES, user=f"full-{number}", max_tokens=4
        ).model
        for number in range(12)
    ]
    assert set(models) == {"svc@1"}, "its users are answered by the champion"
    stand.configure(stand.adapters[:2])


def ask_until(is_over: threading.Event, client: openai.OpenAI) -> list[str]:
    """The models that answered; an answer that fails raises."""
    models = []
    while not is_over.is_set():
        user = f"full-{len(models) % 12}"
        answer = client.chat.completions.create(model=SERVICE, messages=MESSAGES, user=user, max_tokens=4)
        models.append(answer.model)
    return models


def preload_of(stand: Stand) -> list[dict[str, Any]]:
    (one, one_digest), (four, four_digest) = stand.adapters[0], stand.full
    return [
        {"version": one, "kind": "adapter", "digest": one_digest},
        {"version": four, "kind": "full", "digest": four_digest, "app": FULL},
    ]


def test_a_base_that_is_not_there_is_refused_before_an_engine_starts(stand: Stand) -> None:
    config = stage.user_config(SERVICE, stand.adapters[:2], revision=f"r{stand.revision}")
    apps = [stage.application(SERVICE, ENGINE | {"replicas": REPLICAS}, config)]
    app = stage.application("nowhere", ENGINE | {"base": "/nowhere"}, {"service": "nowhere"})
    stand.cluster.put([*apps, {**app, "route_prefix": "/nowhere"}])
    found = stage.wait_until(
        lambda: (a := stand.cluster.application("nowhere")).get("status") == "DEPLOY_FAILED" and a,
        240,
        "the refusal",
    )
    assert "no such directory" in found["message"]
    stand.cluster.put(apps)
    assert text_of(stand.client(), "svc@1")


@pytest.mark.soak
def test_without_mlflow_and_store_answers_continue_and_a_killed_replica_comes_back(stand: Stand) -> None:
    """The store cannot be opened for a while, MLflow's process is stopped until the end."""
    database = stand.cluster.home / "store.db"
    stand.store.close()
    server = mlflow_process(stand.mlflow_url)
    aside, nowhere = database.with_name("aside"), database.with_name("nowhere")
    os.kill(server.pid, signal.SIGSTOP)
    # Both changes are one rename: between two, SQLite would make a new file.
    aside.hardlink_to(database)
    nowhere.symlink_to("/nowhere/store.db")
    nowhere.rename(database)
    try:
        client = stand.client()
        killed, survivor = stand.pids().items()
        ids = [answered(client, f"alone-{number}") for number in range(10)]
        # Serve takes a replica out of the proxy's list while its config changes, as the last test had it.
        time.sleep(PROXY_TOLD_S)
        kill(killed[1])
        ids += [answered(client, f"alone-{number}") for number in range(10, 20)]
    finally:
        aside.rename(database)
    try:
        for request_id in ids:
            stand.exposures(1, request_id=request_id)

        def newcomers() -> list[str]:
            return [
                row["replica_id"]
                for row in stand.replicas()
                if row["replica_id"] not in (killed[0], survivor[0]) and row["loaded"] == BOTH_READY
            ]

        (newcomer,) = stage.wait_until(newcomers, 240, "the replica that comes back")
        stage.wait_until(lambda: newcomer in stand.pids(), 60, "its being told to the proxy")
        kill(survivor[1])
        # On a busy machine the proxy may still ask the dead one for a moment.
        stage.wait_until(lambda: is_answered(client), 30, "the newcomer's answer, alone")
        assert {text_of(client, "svc@1") for _ in range(3)}
    finally:
        os.kill(server.pid, signal.SIGCONT)


def kill(pid: int) -> None:
    """Return when the process is gone: what it was sent in its last moment is lost."""
    process = psutil.Process(pid)
    process.kill()
    process.wait(10)


def is_answered(client: openai.OpenAI) -> bool:
    try:
        return bool(text_of(client, "svc@1"))
    except openai.APIError:
        return False


def answered(client: openai.OpenAI, user: str) -> str:
    """The request id of an answer."""
    answer = client.chat.completions.create(model=SERVICE, messages=MESSAGES, user=user, max_tokens=4)
    return str(answer.id.removeprefix("chatcmpl-"))


def mlflow_process(url: str) -> psutil.Process:
    port = url.rsplit(":", 1)[1]
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "mlflow" in command and port in command:
            return process
    raise LookupError(url)
