"""Ports in use are told before anything starts."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import astuple

import pytest

from seatrial.errors import UserError
from seatrial.stack import ports
from seatrial.stack.ports import Ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def free_ports(**given: int) -> Ports:
    names = ("mlflow", "ray", "dashboard", "serve", "controller")
    return Ports(**(dict(zip(names, ports.inner(5, Ports()), strict=True)) | given))


def test_free_ports_pass_and_stay_free() -> None:
    found = free_ports()
    ports.require_free(found)
    for port in astuple(found):
        with socket.create_server(("127.0.0.1", port)) as server:
            assert server.getsockname()[1] == port


def test_a_port_in_use_is_one_line_with_its_holder_and_its_flag(taken: int) -> None:
    with pytest.raises(UserError) as caught:
        ports.require_free(free_ports(serve=taken))
    message = str(caught.value)
    assert message.startswith(f"--serve-port: {taken}: the port is in use by `")
    assert f"(pid {os.getpid()})" in message
    assert "\n" not in message


def test_every_port_in_use_is_told_at_once(taken: int) -> None:
    with pytest.raises(UserError) as caught:
        ports.require_free(free_ports(serve=taken, mlflow=taken))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["--mlflow-port", "--serve-port"]
    assert "has the same port" in lines[1]


def test_a_port_whose_last_connection_just_closed_is_free() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the server's side closes first and so keeps the port in TIME_WAIT
        client.close()
    assert ports.is_free(port)


def test_inner_ports_are_free_distinct_and_none_of_the_chosen() -> None:
    found = ports.inner(20, Ports())
    assert len(set(found)) == 20
    assert all(port in ports.INNER_PORTS and ports.is_free(port) for port in found)
