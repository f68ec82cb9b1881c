"""The shop's pages: an example, of Python's standard library alone.

    site.py PORT

Serves the page, `/events` (server-sent events: once a second, which version of the catalog answered), `/echo` (a WebSocket that
repeats what it hears) and `/account`, which believes the edge about who has logged in.
"""

import base64
import hashlib
import html
import json
import pathlib
import struct
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FOLDER = pathlib.Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/shop.css": ("shop.css", "text/css; charset=utf-8"),
    "/shop.js": ("shop.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# What a browser may do with the pages: nothing but what comes from here.
SAFETY = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
# Of a WebSocket's message, and of what it is cut into.
MESSAGE_MAX_BYTES = 64 * 1024
TEXT, BYTES, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Site(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path in FILES:
            name, kind = FILES[path]
            self.answer(200, kind, (FOLDER / name).read_bytes())
        elif path == "/events":
            self.events()
        elif path == "/echo":
            self.echo()
        elif path == "/account":
            self.account()
        elif path == "/healthz":
            self.answer(200, "text/plain", b"ok\n")
        else:
            self.answer(404, "text/plain; charset=utf-8", b"There is no such page.\n")

    def answer(self, status, kind, body, headers=()):
        self.send_response(status)
        for name, value in [("content-type", kind), ("content-length", str(len(body))), *SAFETY.items(), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def account(self):
        """The edge says who it is, and takes these headers from everybody who says so himself."""
        facts = {name: html.escape(self.headers.get(f"x-{name}", "")) for name in ("name", "email")}
        page = (FOLDER / "account.html").read_text()
        for name, value in facts.items():
            page = page.replace("{" + name + "}", value)
        self.answer(200, FILES["/"][1], page.encode(), [("cache-control", "no-store")])

    def events(self):
        self.send_response(200)
        for name, value in [("content-type", "text/event-stream"), ("cache-control", "no-store"), ("transfer-encoding", "chunked")]:
            self.send_header(name, value)
        self.end_headers()
        try:
            while True:
                event = f"data: {json.dumps(catalog())}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                time.sleep(1)
        except OSError:
            self.close_connection = True

    def echo(self):
        key = self.headers.get("sec-websocket-key")
        if self.headers.get("upgrade", "").lower() != "websocket" or not key:
            self.answer(426, "text/plain", b"This is a WebSocket.\n", [("upgrade", "websocket")])
            return
        # RFC 6455, section 1.3.
        proof = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        self.send_response(101)
        for name, value in [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", base64.b64encode(proof).decode())]:
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        try:
            self.repeat()
        except (EOFError, OSError):
            pass

    def repeat(self):
        """Sends every frame back as it is, until one says goodbye; a message in many frames comes back in as many."""
        while True:
            first, length = self.take(2)
            final, kind, length = first & 0x80, first & 0x0F, length & 0x7F
            if length >= 126:
                length = struct.unpack(*((">H", self.take(2)) if length == 126 else (">Q", self.take(8))))[0]
            if length > MESSAGE_MAX_BYTES:
                self.say(0x80 | CLOSE, struct.pack(">H", 1009))
                return
            mask = self.take(4)
            payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.take(length)))
            if kind == PING:
                self.say(0x80 | PONG, payload)
            elif kind != PONG:
                self.say(final | kind, payload)
            if kind == CLOSE:
                return

    def take(self, count):
        taken = self.rfile.read(count)
        if len(taken) < count:
            raise EOFError
        return taken

    def say(self, first, payload):
        length = len(payload)
        head = struct.pack(">BB", first, length) if length < 126 else struct.pack(">BBH", first, 126, length)
        if length > 0xFFFF:
            head = struct.pack(">BBQ", first, 127, length)
        self.wfile.write(head + payload)


def catalog():
    """Who answered for the catalog just now. The call is plain HTTP here; the sidecar makes mutual TLS of it."""
    now = time.strftime("%H:%M:%S")
    try:
        with urllib.request.urlopen("http://catalog/items", timeout=2) as answer:
            said = json.load(answer)
        return {"time": now, "instance": said["instance"], "version": said["version"]}
    except (OSError, ValueError, KeyError) as error:
        return {"time": now, "error": str(error)}


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Site).serve_forever()
