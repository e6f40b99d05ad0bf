"""Requests that are wrong in one way or more, as bytes for a socket; none may be taken.

A kind is a function of a random generator. Where a part is missing (`cut`), the client hangs up.
"""

import json
from typing import NamedTuple

RIGHT = {
    "/v1/score": {"history": [{"item": "i1", "liked": True}], "candidates": ["i12", "i13"]},
    "/v1/rank": {"history": [{"title": "A film", "liked": False}], "candidates": ["i2"], "k": 3},
    "/v1/explain": {"history": [{"item": "i3", "liked": True}], "item": "i4"},
    "/v1/feedback": {"user": "mallory", "item": "i5", "liked": True},
}
DEEP = {"[": "]", '{"a":': "}", '{"history":[': "]}"}
NO_TEXT = (None, True, 7, -1.5, float("nan"), [], {}, [[]], 10**400, "", "\ud800", "a\udfffb")
NO_ID = (*NO_TEXT, "\x00", "i1\x00", "x" * 257, "nobody's", "i1 ", "I1", "'; DROP TABLE items; --")
WRONG = {
    "item": NO_ID,
    "user": (*NO_TEXT, "\x00", "x" * 129, "a/b", "a b", "../..", "ü", "<script>", "a\n"),
    "title": (*NO_TEXT, "x" * 301),
    "liked": (None, 0, 1, "true", "", [], {}, float("inf"), 10**400, "\ud800"),
    "k": (None, 0, -1, 101, 2.5, "3", float("nan"), float("-inf"), 10**400, [], True),
    "candidates": ("i2", {}, [], 3, True, {"0": "i2"}, *([one] for one in NO_ID), [["i2"]]),
    "history": (None, "i1", {}, 1, [None], ["i1"], [[]], [{}], [{"liked": True}], [7] * 9_000),
}
NAMES = ("a", "", "__proto__", "\x00", "\ud83d", "k" * 5_000, "history ", "Liked")
TYPES = ("text/plain", "", "multipart/form-data; boundary=x", "multipart/form-data", "/", "json")
TYPES += ("application/x-www-form-urlencoded", "application/xml", "application/jsonp", "\xff\xfe")


class Request(NamedTuple):
    raw: bytes
    cut: bool = False


def request(line, body=b"", headers=()):
    """Well-formed HTTP/1.1."""
    head = [line + " HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return Request("\r\n".join([*head, "", ""]).encode("latin-1") + body)


def post(path, body, kind="application/json"):
    return request(f"POST {path}", body, [f"Content-Type: {kind}"])


def a_right_one(rng):
    path = rng.choice(list(RIGHT))
    return path, json.loads(json.dumps(RIGHT[path]))


def a_wrong_value(rng):
    path, body = a_right_one(rng)
    places = [(body, name) for name in body]
    for event in body.get("history", ()):
        places += [(event, name) for name in event]
    place, name = rng.choice(places)
    place[name] = rng.choice(WRONG[name])
    if path == "/v1/rank" and place.get(name) is None and name == "candidates":
        place[name] = []  # none at all would be right
    return post(path, json.dumps(body).encode())


def a_name_too_many_or_few(rng):
    path, body = a_right_one(rng)
    place = rng.choice([body, *body.get("history", ())])
    if rng.random() < 0.5:
        place[rng.choice(NAMES)] = rng.choice(NO_ID)
    else:
        needed = [name for name in place if name not in ("k", "candidates")]
        del place[rng.choice(needed)]
    return post(path, json.dumps(body).encode())


def no_json(rng):
    path, body = a_right_one(rng)
    text = json.dumps(body).encode()
    at = rng.randrange(len(text))
    opening = rng.choice(list(DEEP))
    depth = rng.choice([10, 500, 5_000])
    deep = opening * depth + (DEEP[opening] * depth if rng.random() < 0.5 else "")
    return post(
        path,
        rng.choice(
            [
                text[:at],
                text[:at] + bytes([rng.randrange(128, 256)]) + text[at:],
                text[:at] + b"\x00" + text[at:],
                text + text,
                deep.encode(),
                rng.randbytes(rng.randrange(1, 400)),
                b"9" * 5_000,
                rng.choice([b"NaN", b"null", b"[]", b'""', b"-", b"{]", b"'{}'", b"{,}"]),
            ]
        ),
    )


def another_type(rng):
    path, body = a_right_one(rng)
    return post(path, json.dumps(body).encode(), rng.choice(TYPES))


def too_long(rng):
    path, _ = a_right_one(rng)
    return post(path, b'{"history": [' + b" " * rng.randrange(65_600, 90_000) + b"]}")


def a_wrong_length(rng):
    """More or less than there is, no number, two numbers, or chunks that are none."""
    path, body = a_right_one(rng)
    text = json.dumps(body).encode()
    start = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    start += "Content-Type: application/json\r\n"
    kind = rng.randrange(4)
    if kind == 0:
        length = len(text) + rng.randrange(1, 500)
        return Request(f"{start}Content-Length: {length}\r\n\r\n".encode() + text, cut=True)
    if kind == 1:
        length = rng.randrange(1, len(text))
        return Request(f"{start}Content-Length: {length}\r\n\r\n".encode() + text)
    if kind == 2:
        length = rng.choice(["-1", "abc", "1e3", "0x10", "", "9" * 19, "9" * 5_000, "5, 6", "+5"])
        return Request(f"{start}Content-Length: {length}\r\n\r\n".encode() + text, cut=True)
    chunk = rng.choice([b"zz\r\n", b"-5\r\nhello\r\n", b"5\r\nhello", b"f" * 30 + b"\r\n", b"\x00"])
    return Request(f"{start}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk, cut=True)


def a_wrong_head(rng):
    line = "GET /v1/items HTTP/1.1\r\n"
    name = "".join(rng.choices("abcdefgh", k=8))
    raw = rng.choice(
        [
            f"{line}\r\n",
            f"{line}Host: attacker.example\r\n\r\n",
            f"{line}Host: 127.0.0.1\r\nHost: {name}\r\n\r\n",
            f"{line}Host: 127.0.0.1\r\n{name}\r\n\r\n",
            f"{line}Host: 127.0.0.1\r\n{name}: a\x00b\r\n\r\n",
            f"{line}Host: 127.0.0.1\r\n{name} : 1\r\n\r\n",
            f"{line}Host: 127.0.0.1\r\n{name}: {'x' * 70_000}\r\n\r\n",
            f"{line}Host: 127.0.0.1\r\n" + "a: b\r\n" * 12_000 + "\r\n",
            f"GET /{name * 9_000} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            f"GET /v1/{name} HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
            f"GET /v1/ {name} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            f"GET /v1/{name}\r\n\r\n",
            f"CONNECT {name}:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n",
        ]
    )
    return Request(raw.encode("latin-1"), cut=True)


def no_http(rng):
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # of TLS
    start = rng.choice([b"", hello, b"\r\n\r\n", b"GET ", b"POST /v1/rank HTTP/1.1\r\n", b"\x00"])
    return Request(start + rng.randbytes(rng.randrange(1, 2_000)), cut=True)


def a_wrong_question(rng):
    """What is asked for in the path is not there, or not allowed there."""
    number = rng.choice(["0", "-1", "51", "9" * 400, "1e1", "NaN", "", "%00", "%ff", "1.5"])
    user = rng.choice(["%00", "%ff", "a%2Fb", "a%20b", "x" * 129, "%C3%BC", "a;b", "%0a"])
    up = rng.choice(
        ["../", "..%2f", "%2e%2e/", "....//", "..\\", "%5c..%5c", "/", "..%c0%af", "./"]
    )
    path = rng.choice(
        [
            f"/v1/items?limit={number}",
            f"/v1/items?q={'x' * rng.randrange(201, 2_000)}",
            f"/v1/users/{user}/feedback",
            f"/v1/{''.join(rng.choices('abc%/?&=', k=9))}",
            f"/page/{up * rng.randrange(1, 9)}etc/passwd",
            f"/page/{up}app.py",
            f"/{up}{up}etc/passwd%00.css",
            f"/page/{'a' * rng.randrange(1, 6_000)}",
            f"/page/%00{user}",
        ]
    )
    return request(f"{rng.choice(['GET', 'GET', 'DELETE'])} {path}")


def another_method(rng):
    method = rng.choice(["PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "FOO", "get", "GET", "HEAD"])
    path = rng.choice([*RIGHT, "/v1/admin/reload", "/v1/ws"])
    upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
               "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]  # fmt: skip
    return request(f"{method} {path}", headers=upgrade if path == "/v1/ws" else ())


KINDS = {
    a_wrong_value: 30,
    a_name_too_many_or_few: 10,
    no_json: 20,
    another_type: 5,
    too_long: 2,
    a_wrong_length: 8,
    a_wrong_head: 7,
    no_http: 5,
    a_wrong_question: 9,
    another_method: 4,
}


def malformed(rng, n):
    """So many requests, of every kind."""
    return [kind(rng) for kind in rng.choices(list(KINDS), KINDS.values(), k=n)]
