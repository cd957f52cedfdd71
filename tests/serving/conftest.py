"""One running service for all slow tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from seatrial.store import Store
from tests.serving import stage
from tests.serving.stand import SERVICE, Stand
from tests.store.conftest import postgres_url

__all__ = ["postgres_url", "stand"]


@pytest.fixture(scope="module")
def stand(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    from seatrial.registry import versions

    folder = tmp_path_factory.mktemp("service")
    base = stage.make_base(folder / "base")
    ref = versions.BaseRef(ref=str(base), digest=versions.folder_digest(base))
    adapters = []
    for seed in (1, 2, 3):
        path = stage.make_adapter(base, folder / f"adapter{seed}", seed=seed)
        made = stage.register(mlflow_uri, SERVICE, path, kind="adapter", method="lora", base=ref, rank=8)
        adapters.append(made)
    whole = stage.make_base(folder / "whole", layers=2, seed=4)
    full = stage.register(mlflow_uri, SERVICE, whole, kind="full", method="full")
    assert [version for version, _ in [*adapters, full]] == ["1", "2", "3", "4"]
    with stage.ray_cluster(folder / "ray", {"MLFLOW_TRACKING_URI": mlflow_uri}) as cluster:
        store = Store(f"sqlite:///{cluster.home / 'store.db'}")
        store.migrate()
        made = Stand(cluster, store, base, adapters, full, mlflow_uri)
        made.put(stage.user_config(SERVICE, adapters[:2], revision="r1"))
        cluster.wait_running(SERVICE)
        yield made
        store.close()
