"""What looks like a secret is refused without being repeated, and hidden in what is shown."""

from __future__ import annotations

import time

import pytest

from seatrial.errors import UserError
from seatrial.submission.screening import found, redact, require_none

AWS = "AKIA" + "ABCDEFGHIJKLMNOP"
SECRET_COMMANDS = [
    (f"train --id {AWS}", AWS),
    ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI python x.py", "wJalrXUtnFEMI"),
    ("python x.py --password=hunter2", "hunter2"),
    ("python x.py --db-password hunter2", "hunter2"),
    ("python x.py --api-key 'k1k2k3'", "k1k2k3"),
    ("python x.py --store postgresql://joe:hunter2@db/x", "hunter2"),
    ("python x.py --store 'postgresql://db/x?password=hunter2'", "hunter2"),
    ("HF_TOKEN=hf_" + "a" * 30 + " python x.py", "a" * 30),
    ("curl -H 'Authorization: Bearer abcdefghijklmnopqrst' x", "abcdefghijklmnopqrst"),
    ("echo '-----BEGIN RSA PRIVATE KEY-----'", "-----BEGIN RSA"),
    ("x ghp_" + "a" * 36, "a" * 36),
    ("PGPASSWORD=hunter2 psql", "hunter2"),
    ("MYSQL_PWD=hunter2 mysql", "hunter2"),
    ("x --db_pass=hunter2", "hunter2"),
    ("x --clientSecret=hunter2", "hunter2"),
    ("x --store=postgresql://db/x?password=hunter2", "hunter2"),
    ("x --conf=a=1,apiKey=hunter2", "hunter2"),
    ('x \'{"password": "hunter2"}\'', "hunter2"),
    ("x HTTPS://Joe:hunter2@host/", "hunter2"),
    ("curl -H 'Authorization: Basic am9lOmh1bnRlcjI='", "am9lOmh1bnRlcjI"),
    ("x 'https://a.blob/c?sv=1&sig=abcdefghijklmnopqrst%3D'", "abcdefghijklmnopqrst"),
    ("x glpat-" + "a" * 20, "a" * 20),
    ("x AIza" + "a" * 35, "a" * 35),
    ("x sk-proj-" + "a" * 30, "a" * 30),
    ("git clone https://" + "a1" * 20 + "@github.com/x", "a1" * 20),
    ("OPENAI_KEY=hunter2 x", "hunter2"),
    ("x SG." + "a" * 22 + "." + "b" * 43, "b" * 43),
    ("x ya29." + "a" * 30, "a" * 30),
    ("x eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF", "SflKxwRJSMeKKF"),
]
PLAIN = [
    "python -m seatrial_jobs.train recipe.yaml --force",
    "python x.py --max-new-tokens 64 --tokenizer base --seq_tokens=512",
    "RAY_AUTH_TOKEN_PATH=/run/token HF_TOKEN_FILE=/run/hf python x.py",
    "python x.py --storage s3://bucket/prefix --uri http://127.0.0.1:5000/x",
    "python x.py --key-column id --sort-keys",
    "git clone ssh://git@host/x && python monkey.py",
    "python x.py --eos-token </s> --pad_token=<pad> --token-budget 5 --use_auth_token=true",
    "bash -c 'psql --password=$DB_PASSWORD postgresql://joe:${DB_PASSWORD}@db/x'",
    "GOOGLE_APPLICATION_CREDENTIALS=/run/key.json x abfs://a-container-of-many-words@lake/x",
    "cd /work && PWD=/work python x.py --uri secret://vault/x",
]


@pytest.mark.parametrize(("command", "secret"), SECRET_COMMANDS)
def test_a_secret_in_the_command_is_refused_and_never_repeated(command: str, secret: str) -> None:
    with pytest.raises(UserError, match="entrypoint: looks like") as caught:
        require_none(command, {}, {})
    assert secret not in str(caught.value)
    assert "environment of the cluster's nodes" in str(caught.value)


@pytest.mark.parametrize("command", PLAIN)
def test_a_plain_command_passes(command: str) -> None:
    assert found(command, {}, {}) == []
    assert redact(command) == command


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "secret",
        "PGPASSWORD",
        "authToken",
    ],
)
def test_a_secret_by_its_name_is_refused_in_env_and_metadata(name: str) -> None:
    with pytest.raises(UserError, match=f"env.{name}: looks like a secret"):
        require_none("x", {name: "v"}, {})
    with pytest.raises(UserError, match=f"metadata.{name}: looks like a secret"):
        require_none("x", {}, {name: "v"})


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "PASSWORD_FILE", "MAX_TOKENS", "PATH"]
)
def test_names_that_hold_no_secret_pass(name: str) -> None:
    assert found("x", {name: "v"}, {}) == []


def test_a_password_in_a_recipe_is_found() -> None:
    with pytest.raises(UserError, match=r"recipe\.run\.storage: looks like a password in a URL"):
        require_none("x", {}, {}, {"run.storage": "s3://id:key@host/bucket"})


@pytest.mark.parametrize(("command", "secret"), SECRET_COMMANDS)
def test_what_is_shown_hides_it(command: str, secret: str) -> None:
    assert secret not in redact(command)


def test_what_is_said_of_an_option_stays() -> None:
    said = "give --password or set --api-key to what the server has"
    assert redact(said) == said


@pytest.mark.parametrize(
    "piece", ["a-", "a=a", "a", "://", "eyJ-", "a.a:", "password", "-----BEGIN ", "a:b@", "--token "]
)
def test_a_line_of_any_length_costs_little(piece: str) -> None:
    line = piece * (100_000 // len(piece))
    began = time.process_time()
    redact(line)
    assert time.process_time() - began < 5.0
