"""One running service for all slow tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from seatrial.registry import versions
from seatrial.store import Store
from tests.serving import stage
from tests.serving.stand import BASE, SERVICE, Stand
from tests.store.conftest import postgres_url

__all__ = ["postgres_url", "stand"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    made = Store(f"sqlite:///{tmp_path / 'store.db'}")
    made.migrate()
    yield made
    made.close()


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Two replicas, every model out of a registry whose artifacts lie on S3."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "s3" / "models").mkdir(parents=True)
    with (
        stage.s3_server(folder / "s3") as s3,
        stage.mlflow_server(folder / "mlflow", "s3://models/mlflow", s3) as mlflow_url,
        stage.ray_cluster(folder / "ray", {"MLFLOW_TRACKING_URI": mlflow_url}) as cluster,
    ):
        base = stage.make_base(folder / "base")
        _, digest = stage.register(mlflow_url, BASE, base, kind="full", method="full")
        ref = versions.BaseRef(ref=f"models:/{BASE}/1", digest=digest)
        adapters = []
        for seed in (1, 2, 3):
            path = stage.make_adapter(base, folder / f"adapter{seed}", seed=seed)
            made = stage.register(mlflow_url, SERVICE, path, kind="adapter", method="lora", base=ref, rank=8)
            adapters.append(made)
        whole = stage.make_base(folder / "whole", layers=2, seed=4)
        full = stage.register(mlflow_url, SERVICE, whole, kind="full", method="full")
        assert [version for version, _ in [*adapters, full]] == ["1", "2", "3", "4"]
        store = Store(f"sqlite:///{cluster.home / 'store.db'}")
        store.migrate()
        found = Stand(cluster, store, base, adapters, full, mlflow_url)
        found.put(stage.user_config(SERVICE, adapters[:2], revision="r1"))
        cluster.wait_running(SERVICE)
        with found.opened:
            yield found
        store.close()
