"""Nothing secret may stand in what Ray's dashboard, MLflow and logs show to everyone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

from seatrial.errors import UserError

VALUES = {
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in a URL": r"\b[a-z][a-z0-9+.-]*://[^\s/:@]*:[^\s/@]+@",
    "a bearer token": r"(?i)\bbearer\s+[A-Za-z0-9._~+/-]{16,}=*",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})\b",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a JSON web token": r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}",
}
PATTERNS = {what: re.compile(pattern) for what, pattern in VALUES.items()}
NAME = re.compile(
    r"(?i)(?:^|[_.-])(?:secret|password|passwd|passphrase|token|credentials?|api[_-]?key|access[_-]?key"
    r"|private[_-]?key)(?:$|[_.-])"
)
# `AWS_ACCESS_KEY_ID=…`, `--api-key=…`, `password: …`: a name with its value.
ASSIGNED = re.compile(r"(?:^|[\s;&|?'\"(-])-*([A-Za-z][\w.-]*?)[=](\S+)")
# Names that hold no secret themselves: where one is kept, how many tokens, a tokenizer.
HARMLESS = re.compile(r"(?i)(?:_?(?:path|file|name|id_file|url|dir|mode|count|limit)$|tokens|tokenizer)")
REMEDY = "set it in the environment of the cluster's nodes, which jobs inherit, or give the path of a file"
HIDDEN = "[hidden]"


def require_none(
    entrypoint: str, env: Mapping[str, str], metadata: Mapping[str, str], *more: Mapping[str, str]
) -> None:
    """Refuse what looks like a secret; its value is never repeated.

    Raises:
        UserError: naming the place and the right way.
    """
    for where, what in found(entrypoint, env, metadata, *more):
        raise UserError(f"{where}: looks like {what}, which everyone sees in the dashboard: {REMEDY}")


def found(
    entrypoint: str, env: Mapping[str, str], metadata: Mapping[str, str], *more: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Place and kind of everything that looks like a secret."""
    places = [("entrypoint", what) for what in _in_command(entrypoint)]
    for kind, values in (("env", env), ("metadata", metadata), *(("recipe", each) for each in more)):
        for name, value in values.items():
            places += [(f"{kind}.{name}", what) for what in _in_pair(name, value)]
    return places


def redact(text: str) -> str:
    """The text with everything that looks like a secret hidden."""
    for pattern in PATTERNS.values():
        text = pattern.sub(HIDDEN, text)

    def hide(match: re.Match[str]) -> str:
        name, value = match.groups()
        return match.group(0).replace(value, HIDDEN) if _is_secret_name(name) else match.group(0)

    return ASSIGNED.sub(hide, text)


def _in_command(command: str) -> Iterable[str]:
    yield from (what for what, pattern in PATTERNS.items() if pattern.search(command))
    for name, _ in ASSIGNED.findall(command):
        if _is_secret_name(name):
            yield f"a secret ({name}=…)"
    for word, value in pairwise(command.split()):
        if word.startswith("--") and "=" not in word and _is_secret_name(word.strip("-")) and value[0] != "-":
            yield f"a secret ({word} …)"


def _in_pair(name: str, value: str) -> Iterable[str]:
    yield from (what for what, pattern in PATTERNS.items() if pattern.search(value))
    if value and _is_secret_name(name):
        yield "a secret by its name"


def _is_secret_name(name: str) -> bool:
    return bool(NAME.search(name)) and not HARMLESS.search(name)
