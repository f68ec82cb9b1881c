"""A server of HTTP/1.1 that answers a POST with its body, and a GET with the headers that it saw, as JSON. Usage: mirror.py PORT"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(json.dumps({name.lower(): value for name, value in self.headers.items()}).encode())

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["content-length"])))

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    address_family = __import__("socket").AF_INET6
    request_queue_size = 128


Server(("::", int(sys.argv[1])), Mirror).serve_forever()
