"""Measurements reach MLflow once and in order, whatever MLflow does meanwhile."""

from __future__ import annotations

import threading

from seatrial.registry.runs import Point
from seatrial_jobs.recorder import Recorder


def point(step: int, key: str = "loss") -> Point:
    return Point(key, float(step), step, 1000 + step)


class Server:
    """Takes points, or refuses them while it is down."""

    def __init__(self, known: dict[str, int] | None = None, *, down: bool = False) -> None:
        self.points: list[Point] = []
        self.known = known or {}
        self.down = down
        self.refused = threading.Event()

    def send(self, points: list[Point]) -> None:
        if self.down:
            self.refused.set()
            raise ConnectionError("down")
        self.points += points

    def recorder(self) -> Recorder:
        return Recorder(self.send, lambda: self.known, flush_every_s=0.01)


def test_points_arrive_in_order():
    server = Server()
    recorder = server.recorder()
    for step in range(20):
        recorder.add([point(step)])
    assert recorder.close(5)
    assert server.points == [point(step) for step in range(20)]


def test_steps_that_mlflow_has_are_not_sent_again():
    server = Server(known={"loss": 5})
    recorder = server.recorder()
    recorder.add([point(4), point(5), point(6), point(3, "other")])
    assert recorder.close(5)
    assert server.points == [point(6), point(3, "other")]


def test_a_step_of_one_key_is_sent_once_however_often_it_is_measured():
    server = Server()
    recorder = Recorder(server.send, dict, flush_every_s=60)  # all in one batch
    twice = [Point("blocked_s", value, 8, 1000) for value in (0.5, 0.1)]
    recorder.add([point(7), *twice, point(8)])
    assert recorder.close(5)
    assert server.points == [point(7), twice[0], point(8)]


def test_points_survive_an_outage_and_are_pending_until_then(monkeypatch):
    monkeypatch.setattr("seatrial_jobs.recorder.RETRY_AFTER_S", 0.01)
    server = Server(down=True)
    recorder = server.recorder()
    recorder.add([point(1)])
    assert server.refused.wait(5)
    assert recorder.pending() == [vars(point(1))]
    assert server.points == []
    server.down = False
    assert recorder.close(5)
    assert server.points == [point(1)]
    assert recorder.pending() == []


def test_closing_says_when_points_were_left(monkeypatch):
    monkeypatch.setattr("seatrial_jobs.recorder.RETRY_AFTER_S", 0.01)
    server = Server(down=True)
    recorder = server.recorder()
    recorder.add([point(1)])
    assert not recorder.close(0.2)
    assert isinstance(recorder.problem, ConnectionError)
    server.down = False
