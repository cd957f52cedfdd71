"""Nothing secret may stand in what Ray's dashboard, MLflow and logs show to everyone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

from seatrial.config.section import Section
from seatrial.errors import UserError

# Every repetition has a bound: a job writes what is searched, as long as it likes.
VALUES = {
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----",
    "a password in a URL": r"(?i)\b[a-z][a-z0-9+.-]{0,30}://[^\s/:@]{0,200}:(?!\$\{?\w+\}?@)[^\s/@]{1,400}@",
    "a bearer token": r"(?i)\bbearer\s{1,4}[A-Za-z0-9._~+/-]{16,}=*",
    "a password in a header": r"(?i)\bauthorization[\"']?\s{0,2}[:=]\s{0,2}[\"']?basic\s{1,4}[\w+/-]{8,}=*",
    "a signed URL": r"[?&](?:sig|X-Amz-Signature|X-Goog-Signature)=[A-Za-z0-9%+/]{16,}=*",
    "an Azure key": r"(?i)\b(?:Account|SharedAccess)Key=[A-Za-z0-9+/]{20,}=*",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})\b",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "a Google API key": r"\bAIza[\w-]{35}\b",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a Stripe key": r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "a package registry's token": r"\b(?:npm_[A-Za-z0-9]{36}\b|pypi-AgE[\w-]{20,})",
    "a SendGrid key": r"\bSG\.[\w-]{20,24}\.[\w-]{40,50}",
    "a Google token": r"\bya29\.[\w-]{20,}",
    "a token in a URL": r"(?i)\bhttps?://[\w-]{20,400}@",
    "a Databricks token": r"\bdapi[0-9a-f]{32}\b",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a JSON web token": r"\beyJ[\w-]{8,400}\.eyJ[\w-]{8,}\.[\w-]{8,}",
}
PATTERNS = {what: re.compile(pattern) for what, pattern in VALUES.items()}
# Of a name with its words apart: `PGPASSWORD`, `db_pass`, `client_secret`, `AWS_ACCESS_KEY_ID`.
NAME = re.compile(
    r"(?i)(?:[a-z]*passw(?:or)?d|passphrase"
    r"|(?:^|[_.-])(?:credentials?|(?:client|app|shared)?secrets?"
    r"|(?:access|api|auth|bearer|hf|refresh|session)?token"
    r"|(?:access|account|api|auth|encryption|master|private|secret|shared|signing|storage)[_.-]?key)"
    r"|(?:anthropic|cohere|google|mistral|openai|wandb)[_.-]key|authorization"
    r"|(?:db|http|mail|mysql|pg|redis|smtp|user)[_.-]?pass|[a-z][_.-]pwd)(?:$|[_.-])"
)
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# `AWS_ACCESS_KEY_ID=…`, `--api-key=…`, `"password": …`: a name with its value.
# The value is only looked at, since another one may stand in it: `--store=postgresql://db/x?password=…`.
ASSIGNED = re.compile(
    r"(?<![A-Za-z0-9_.])([A-Za-z_][\w.-]{0,80}?)[\"']?\s{0,2}[=:]\s{0,2}(?!//)(?=([\"']?[^\s=]\S{0,2000}))"
)
# `--password …`, as a command that is echoed in a log has it; a short plain word is one of a sentence.
OPTION = re.compile(r"(?<!\S)--([A-Za-z][\w-]{0,80})\s{1,4}(?=\S{0,200}\d|\S{8})(?=([^\s-]\S{0,2000}))")
# Names that hold no secret themselves: where one is kept, how many tokens, a tokenizer, a token of a text.
HARMLESS = re.compile(
    r"(?i)(?:_?(?:path|file|name|id_file|url|dir|mode|count|limit)$|application_credentials$|tokens|tokenizer"
    r"|(?:audio|bos|cls|end|eos|first|image|last|mask|max|min|new|next|num|pad|per|sep|special|start|stop|unk)"
    r"[_.-]token|token[_.-](?:budget|count|ids?|index|length|limit|type))"
)
# `$DB_PASSWORD`: the job finds it in its environment. `use_auth_token=true`.
NO_VALUE = re.compile(r"(?i)[\"']*(?:\$\{?\w+\}?|true|false|yes|no|none|null)?[\"',;)}\]]*")
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


def require_none_in(recipe: Section) -> None:
    """Refuse what looks like a secret in a recipe that no command is known of.

    Raises:
        UserError: naming the field and the right way.
    """
    require_none("", {}, {}, texts(recipe.model_dump(mode="json")))


def found(
    entrypoint: str, env: Mapping[str, str], metadata: Mapping[str, str], *more: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Place and kind of everything that looks like a secret."""
    places = [("entrypoint", what) for what in _in_command(entrypoint)]
    for kind, values in (("env", env), ("metadata", metadata), *(("recipe", each) for each in more)):
        for name, value in values.items():
            places += [(f"{kind}.{name}", what) for what in _in_pair(name, value)]
    return places


def texts(values: object, at: str = "") -> dict[str, str]:
    """Every text of a dumped recipe by its path."""
    if isinstance(values, Mapping):
        pairs = [texts(value, f"{at}.{key}" if at else str(key)) for key, value in values.items()]
    elif isinstance(values, list | tuple):
        pairs = [texts(value, f"{at}[{index}]") for index, value in enumerate(values)]
    else:
        return {at: values} if isinstance(values, str) else {}
    return {path: text for part in pairs for path, text in part.items()}


def redact(text: str) -> str:
    """The text with everything that looks like a secret hidden."""
    for pattern in PATTERNS.values():
        text = pattern.sub(HIDDEN, text)

    return _without(OPTION, _without(ASSIGNED, text))


def _without(named: re.Pattern[str], text: str) -> str:
    """The text without the values of secrets' names."""
    parts, at = [], 0
    for match in named.finditer(text):
        if match.start(2) >= at and _is_secret(*match.groups()):
            parts += [text[at : match.start(2)], HIDDEN]
            at = match.end(2)
    return "".join([*parts, text[at:]])


def _in_command(command: str) -> Iterable[str]:
    yield from (what for what, pattern in PATTERNS.items() if pattern.search(command))
    for name, value in ASSIGNED.findall(command):
        if _is_secret(name, value):
            yield f"a secret ({name}=…)"
    for word, value in pairwise(command.split()):
        is_option = word.startswith("--") and "=" not in word and value[0] != "-"
        if is_option and _is_secret(word.strip("-"), value):
            yield f"a secret ({word} …)"


def _in_pair(name: str, value: str) -> Iterable[str]:
    yield from (what for what, pattern in PATTERNS.items() if pattern.search(value))
    if _is_secret(name, value):
        yield "a secret by its name"


def _is_secret(name: str, value: str) -> bool:
    words = CAMEL.sub("_", name)
    return bool(NAME.search(words)) and not HARMLESS.search(words) and not NO_VALUE.fullmatch(value)
