"""A proxy on loopback that hands questions on to a real server, and spoils answers as told.

What the real server answered to a body is kept, so that the same question takes no time again: a
fault is then the only thing in which two passes differ.
"""

import json
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread


@dataclass
class Proxy:
    """What the proxy was told and what it saw.

    Attributes:
        upstream: The real server.
        fault: (number of the request from 0, its body) to the name of a fault, None for none.
        requests: (headers as text, body, fault) of each request, in order.
        whole: Bodies that were answered as the real server answers.
    """

    upstream: str
    fault: object = lambda _number, _body: None
    requests: list = field(default_factory=list)
    whole: list = field(default_factory=list)
    url: str = ""
    kept: dict = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)
    released: Event = field(default_factory=Event)

    def forget(self, fault=lambda _number, _body: None):
        """Begins anew, with other faults; the real server's answers stay."""
        self.released.set()
        self.released = Event()
        self.fault = fault
        self.requests.clear()
        self.whole.clear()

    def answer(self, path, headers, body):
        """Status and content as the real server gives them."""
        names = ("Authorization", "Content-Type")
        passed = {name: headers[name] for name in names if headers[name]}
        question = (path, passed.get("Authorization"), body)
        with self.lock:
            if question not in self.kept:
                request = urllib.request.Request(self.upstream + path, body, passed)  # noqa: S310
                try:
                    with urllib.request.urlopen(request) as response:  # noqa: S310
                        self.kept[question] = response.status, response.read()
                except urllib.error.HTTPError as error:
                    self.kept[question] = error.code, error.read()
            return self.kept[question]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with proxy.lock:
            fault = proxy.fault(len(proxy.requests), json.loads(body))
            proxy.requests.append((str(self.headers), json.loads(body), fault))
        if fault:
            getattr(self, fault)(body)
            return
        status, content = proxy.answer(self.path, self.headers, body)
        self.send(status, content)
        proxy.whole.append(json.loads(body))

    def send(self, status, content, headers=()):
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), *headers):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def error(self, status, message, headers=(), **more):
        self.send(status, json.dumps({"error": {"message": message, **more}}).encode(), headers)

    def too_many(self, _body):
        self.error(429, "slow down", [("Retry-After", "0.3")])

    def tomorrow(self, _body):
        self.error(429, "come back tomorrow", [("Retry-After", "86400")])

    def no_money(self, _body):
        self.error(429, "You exceeded your current quota", code="insufficient_quota")

    def broken(self, _body):
        self.send(500, b"Internal Server Error")

    def hang(self, _body):
        self.server.proxy.released.wait(30)
        self.close_connection = True

    def hang_up(self, _body):
        self.close_connection = True

    def cut(self, body):
        _, content = self.server.proxy.answer(self.path, self.headers, body)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    def garbage(self, _body):
        self.send(200, b"<html>Please log in</html>")

    def something_else(self, _body):
        self.send(200, b'{"status": "ok"}')

    def no_logprobs(self, _body):
        self.error(400, "Unsupported parameter: 'logprobs' is not supported with this model.")

    def no_model(self, _body):
        self.error(404, "The model `nothing` does not exist")

    def tell_key(self, _body):
        self.error(401, f"Incorrect API key provided: {self.headers['Authorization']}")

    def log_message(self, *_):
        """Says nothing."""


@contextmanager
def proxy_of(upstream):
    """A running proxy."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.proxy = Proxy(upstream)
    server.proxy.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.proxy
    finally:
        server.proxy.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
