"""What is looked at before a service is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seatrial.config.addresses import Addresses
from seatrial.config.service import ServiceConfig
from seatrial.errors import UserError
from seatrial.store import Store
from seatrial.submission import deploy


def config(name: str, **trial: Any) -> ServiceConfig:
    plain = {"name": name, "engine": {"base": "models:/base/1"}, "http": {"allow_anonymous": True}}
    return ServiceConfig.model_validate({**plain, "trial": trial})


def part(name: str, start: float, end: float) -> ServiceConfig:
    return config(name, namespace={"name": "home", "start": start, "end": end})


def test_services_whose_parts_of_a_namespace_overlap_are_refused(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    where = Addresses("", "", "", "", url, tmp_path)
    file = Path("chat.yaml")
    deploy.check_namespace(part("chat", 0.0, 0.5), where, file)  # the first service of all
    store = Store(url)
    for each in (part("search", 0.4, 1.0), config("plain")):
        store.put_service(each.name, each.model_dump(mode="json"), now=1.0)
    with pytest.raises(UserError) as refused:
        deploy.check_namespace(part("chat", 0.0, 0.5), where, file)
    assert str(refused.value) == (
        "chat.yaml: trial.namespace: home 0 to 0.5: overlaps home 0.4 to 1 of search: "
        "give a part that is free: 0 to 0.4"
    )
    for fine in (part("chat", 0.0, 0.4), part("search", 0.0, 1.0), config("chat")):
        deploy.check_namespace(fine, where, file)
    store.ask_delete("search", now=2.0)
    deploy.check_namespace(part("chat", 0.0, 0.5), where, file)  # what is to go is in nobody's way
    store.close()
