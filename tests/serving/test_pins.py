"""One base for every replica at any time, whatever happens to its alias or to MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from seatrial.config.addresses import Addresses
from seatrial.config.service import ServiceConfig
from seatrial.errors import RetryableError, UserError
from seatrial.registry.bases import CHAT_TEMPLATE
from seatrial.submission import deploy
from seatrial_serving.base import full_model, resolve
from seatrial_serving.engine import _llm_config
from seatrial_serving.spec import Spec
from tests.serving import stage

pytestmark = pytest.mark.slow

NAME = "pinned-base"


def make_version(mlflow_uri: str, folder: Path, content: bytes) -> tuple[str, str]:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(content)
    return stage.register(mlflow_uri, NAME, folder, kind="full", method="full")


def test_a_deployed_base_stays_the_same_when_its_alias_moves(mlflow_uri: str, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri)
    first, _ = make_version(mlflow_uri, tmp_path / "a", b"a")
    second, _ = make_version(mlflow_uri, tmp_path / "b", b"b")
    addresses = Addresses.resolve({"MLFLOW_TRACKING_URI": mlflow_uri, "SEATRIAL_HOME": str(tmp_path)})
    values = {"name": "svc", "engine": {"base": f"models:/{NAME}@prod"}, "http": {"allow_anonymous": True}}
    config = ServiceConfig.model_validate(values)
    with pytest.raises(UserError, match="prod"):
        deploy.put(config, addresses, now=1.0)
    for version, now in ((first, 2.0), (second, 3.0)):
        client.set_registered_model_alias(NAME, "prod", version)
        row = deploy.put(config, addresses, now=now)
        assert row["config"]["engine"]["base"] == f"models:/{NAME}/{version}"


def test_a_base_and_a_full_model_are_found_again_without_mlflow(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, digest = make_version(mlflow_uri, tmp_path / "a", b"weights")
    other, _ = make_version(mlflow_uri, tmp_path / "b", b"other weights")
    cache = tmp_path / "home" / "cache" / "versions"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("SEATRIAL_HOME", str(tmp_path / "home"))
    service = {"name": NAME, "engine": {"base": f"models:/{NAME}/{version}"}}
    spec = Spec.model_validate({"service": service, "version": version, "digest": digest})
    found = resolve(spec.base, None, cache)
    assert (found.digest, found.ref_pinned) == (digest, spec.base)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{stage.free_port()}")
    assert resolve(spec.base, None, cache) == found
    assert full_model(spec, cache) == found.path
    with pytest.raises(RetryableError, match="does not answer"):
        resolve(f"models:/{NAME}/{other}", None, cache)
    (found.path / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(RetryableError, match="does not answer"):
        resolve(spec.base, None, cache)


@pytest.mark.parametrize("has_its_own", [True, False])
def test_a_base_without_a_chat_template_is_spoken_to_as_in_training(
    tmp_path: Path, has_its_own: bool
) -> None:
    from vllm.renderers.chat_utils import load_chat_template

    config = '{"chat_template": "{{ messages }}"}' if has_its_own else "{}"
    (tmp_path / "tokenizer_config.json").write_text(config)
    spec = Spec.model_validate({"service": {"name": NAME, "engine": {"base": "x"}}})
    kwargs = _llm_config(spec, NAME, tmp_path, device="cpu", lora=True).engine_kwargs
    assert load_chat_template(kwargs.get("chat_template")) == (None if has_its_own else CHAT_TEMPLATE)
