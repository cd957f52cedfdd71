"""An object store as a pyarrow file system that writes no markers for folders.

Object stores have no folders. pyarrow makes them look real with empty objects whose names end in `/`, at the
price of a request for each, and some S3 servers store those under the name of the folder, which then hides
what is in it. Nothing here needs them: a folder is there when something is in it.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow.fs as pafs

CONNECT_TIMEOUT_S = 10
ATTEMPTS = 3


class WithoutMarkers(pafs.FileSystemHandler):  # type: ignore[misc]
    """Everything as ``inner`` does it, except that making a folder does nothing."""

    def __init__(self, inner: pafs.FileSystem) -> None:
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WithoutMarkers) and bool(self.inner == other.inner)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(type(self))

    def get_type_name(self) -> str:
        return str(self.inner.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self.inner.normalize_path(path))

    def get_file_info(self, paths: Any) -> Any:
        return self.inner.get_file_info(list(paths))

    def get_file_info_selector(self, selector: Any) -> Any:
        return self.inner.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Folders come with their first object."""

    def delete_dir(self, path: str) -> None:
        self.inner.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("a whole store is never emptied")

    def delete_file(self, path: str) -> None:
        self.inner.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self.inner.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self.inner.copy_file(src, dest)

    def open_input_stream(self, path: str) -> Any:
        return self.inner.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return self.inner.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return self.inner.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        return self.inner.open_append_stream(path, metadata=metadata)


class S3WithoutMarkers(WithoutMarkers):
    """S3, where pyarrow makes a marker for the parent of whatever it deletes, so boto3 deletes instead."""

    def __init__(self, inner: pafs.FileSystem, client_options: dict[str, str]) -> None:
        super().__init__(inner)
        self.client_options = client_options

    def delete_dir(self, path: str) -> None:
        found = self.inner.get_file_info(pafs.FileSelector(path, recursive=True))
        self._delete([info.path for info in found if info.type == pafs.FileType.File])

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.delete_dir(path)

    def delete_file(self, path: str) -> None:
        self._delete([path])

    def _delete(self, paths: list[str]) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        patience = Config(connect_timeout=CONNECT_TIMEOUT_S, retries={"total_max_attempts": ATTEMPTS})
        client = boto3.client("s3", config=patience, **self.client_options)
        for path in paths:
            bucket, _, key = path.partition("/")
            try:
                client.delete_object(Bucket=bucket, Key=key)
            except (BotoCoreError, ClientError) as error:  # pyarrow's are OSErrors as well
                raise OSError(str(error)) from error


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system and the path in it of a directory or an object store's URI.

    Raises:
        ValueError: it is no such URI, or it holds keys.
        OSError: the store does not answer.
    """
    _refuse_keys(uri)
    filesystem, path = pafs.FileSystem.from_uri(uri)
    if uri.startswith("s3://"):
        filesystem = pafs.PyFileSystem(S3WithoutMarkers(filesystem, _client_options(uri, filesystem.region)))
    elif filesystem.type_name != "local":
        filesystem = pafs.PyFileSystem(WithoutMarkers(filesystem))
    return filesystem, path.rstrip("/")


def _client_options(uri: str, region: str) -> dict[str, str]:
    """What boto3 must know to reach the store of ``uri``; keys come from the environment, as for pyarrow."""
    query = dict(parse_qsl(urlsplit(uri).query))
    options = {"region_name": region}
    if endpoint := query.get("endpoint_override"):
        scheme = "" if "://" in endpoint else f"{query.get('scheme', 'https')}://"
        options["endpoint_url"] = scheme + endpoint
    return options


def without_keys(uri: str) -> str:
    """The URI without what stands before its host; a secret may hold a `/`, and is then cut off as well."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri
    place, question, query = rest.partition("?")
    host = place.rpartition("@")[2]
    if scheme == "s3" and ":" in host.partition("/")[0]:
        host = "…"  # keys that lost their `@`: no bucket has a colon
    return f"{scheme}{mark}{host}{question}{query}"


def _refuse_keys(uri: str) -> None:
    host = uri.partition("://")[2].partition("?")[0].partition("/")[0]
    if "@" in host or (uri.startswith("s3://") and ":" in host):  # no bucket has either
        raise ValueError("keys in an address are shown to everybody: set AWS_ACCESS_KEY_ID and its secret")
