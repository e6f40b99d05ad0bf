"""Ten thousand requests that are wrong: refused or hung up on, and the service is what it was."""

import random
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import psutil

from tests.serve.malformed import malformed
from tests.serve.test_lifecycle import command

ASKED = {"history": [{"item": "i1", "liked": True}], "candidates": ["i12", "i13", "i14"]}

CLIENTS = 8


def answer(port, request):
    """All that comes back on a connection of its own."""
    came = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(request.raw)
            if request.cut:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65_536):
                came += piece
        except ConnectionError:  # hung up on while it still talked
            pass
    return came


def refused(came):
    """Whether an answer is nothing, or a status from 400 to 499."""
    return not came or re.match(rb"HTTP/1\.1 4\d\d ", came) is not None


def test_ten_thousand_malformed_requests_are_refused(runs):
    wrong = malformed(random.Random(5), 10_000)  # noqa: S311 - no secret
    with command(runs / "first") as (process, client), ThreadPoolExecutor(CLIENTS) as pool:
        logged = pool.submit(process.stderr.read)
        before = client.post("/v1/score", ASKED)
        answers = list(pool.map(lambda request: answer(client.port, request), wrong[:2_000]))
        service = psutil.Process(process.pid)
        memory, threads = service.memory_info().rss, service.num_threads()
        answers += pool.map(lambda request: answer(client.port, request), wrong[2_000:])
        # Asserted below: what fails in here would wait for a log that ends with the service.
        grown = service.memory_info().rss - memory
        new_threads = service.num_threads() - threads
        after = client.post("/v1/score", ASKED)
        told = client.get("/metrics").text
        process.terminate()
        log = logged.result()
    assert [r for r, came in zip(wrong, answers, strict=True) if not refused(came)] == []
    assert sum(not came for came in answers) < 0.2 * len(answers)
    assert before.status == 200
    assert after.text == before.text
    assert re.search(r'status="5', told) is None
    assert "tallrec_requests_open 1.0" in told
    assert grown < 20e6
    assert new_threads <= CLIENTS  # one for each that asks at once, if they had not met before
    assert '"level": "error"' not in log
    assert "127.0.0.1:" not in log
