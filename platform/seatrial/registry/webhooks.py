"""The webhook by which MLflow hints at moved aliases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from seatrial.registry.client import asking, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.webhook import Webhook

NAME = "seatrial-controller"
# Only an alias makes the controller act; a version without one waits.
EVENTS = ("model_version_alias.created", "model_version_alias.deleted")
PAGE = 100


def ensure(url: str, secret: str, *, uri: str | None = None, renew: bool = True) -> None:
    """Have one active webhook for ``url`` with :data:`EVENTS`; those that are twice are deleted.

    MLflow does not tell a webhook's secret, so ``renew`` sends it again although all looks well.

    Raises:
        RetryableError: MLflow does not answer, or refuses: it must allow the URL's scheme and address.
    """
    client = connect(uri)
    with asking():
        mine = sorted(
            (each for each in _all(client) if each.url == url), key=lambda each: str(each.webhook_id)
        )
        for extra in mine[1:]:
            client.delete_webhook(extra.webhook_id)
        if not mine:
            client.create_webhook(NAME, url, list(EVENTS), secret=secret)
        elif renew or not _is_right(mine[0]):
            client.update_webhook(mine[0].webhook_id, events=list(EVENTS), secret=secret, status="ACTIVE")


def _is_right(found: Webhook) -> bool:
    return found.status.is_active() and {str(event) for event in found.events} == set(EVENTS)


def _all(client: MlflowClient) -> Iterator[Webhook]:
    token = None
    while True:
        page = client.list_webhooks(max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
