"""Whoever a gateway's policies ask: Envoy's services for authorization and rate limits by gRPC, one for authorization by HTTP that also
introspects tokens, and Redis. Does what the file `way` of a folder says, from whenever it changes on:

allow, deny   answers, as one does who is well
refuses       answers each question with an error of its protocol
hangs         takes connections and says nothing
closes        takes connections and closes them
garbage       answers what nobody understands
gone          is not there

What comes by gRPC is kept: a line for each question in the folder's `asked`, its method and its message in hexadecimal.

Usage: guards.py FOLDER GRPC_PORT HTTP_PORT REDIS_PORT
"""
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHECK = "/envoy.service.auth.v3.Authorization/Check"
LIMIT = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
# Messages of answers: CheckResponse with and without `status.code` PERMISSION_DENIED, RateLimitResponse with OK and OVER_LIMIT.
ANSWERS = {(CHECK, "allow"): b"", (CHECK, "deny"): b"\x0a\x02\x08\x07", (LIMIT, "allow"): b"\x08\x01", (LIMIT, "deny"): b"\x08\x02"}
GARBAGE = b"SSH-2.0-nonsense, and more of it than the head of a frame has\r\n\r\n"


def grpc_server(way, folder, port):
    import grpc

    lock = threading.Lock()

    class Questions(grpc.GenericRpcHandler):
        def service(self, details):
            def answer(message, context):
                with lock, open(os.path.join(folder, "asked"), "a") as kept:
                    kept.write(f"{details.method} {message.hex()}\n")
                if way == "refuses":
                    context.abort(grpc.StatusCode.INTERNAL, "no")
                return ANSWERS[details.method, way]

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Questions()], options=[("grpc.so_reuseport", 0)])
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    return server


def http_server(way, port):
    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            body = b""
            status = {"allow": 200, "deny": 403, "refuses": 500}[way]
            if self.path == "/introspect" and way != "refuses":
                status, body = 200, b'{"active": %s, "sub": "ada"}' % (b"true" if way == "allow" else b"false")
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, *_):
            pass

    ThreadingHTTPServer.allow_reuse_address = True
    server = ThreadingHTTPServer(("0.0.0.0", port), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def raw_server(way, port):
    """Connections that nothing sensible comes of; or a Redis server that refuses whatever it is asked."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("0.0.0.0", port))
    listening.listen(64)
    held = []

    def converse(stream):
        while way != "hangs" and stream.recv(65536):
            stream.sendall(b"-ERR no\r\n" if way == "refuses" else GARBAGE)

    def accept():
        while True:
            stream, _ = listening.accept()
            if way == "closes":
                stream.close()
                continue
            held.append(stream)
            threading.Thread(target=converse, args=[stream], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def serve(way, folder, grpc_port, http_port, redis_port):
    """One way, until the process is ended."""
    kept = []
    if way in ("allow", "deny", "refuses"):
        kept = [grpc_server(way, folder, grpc_port), http_server(way, http_port)]
    else:
        raw_server(way, grpc_port)
        raw_server(way, http_port)
    if way not in ("allow", "deny"):
        raw_server(way, redis_port)
    print(f"{way}: serving {len(kept)}", flush=True)
    signal.pause()


def begin(way, arguments):
    """Processes of a way."""
    if way == "gone":
        return []
    own = [subprocess.Popen([sys.executable, __file__, *arguments, way])]
    if way in ("allow", "deny"):
        redis = ["redis-server", "--port", arguments[3], "--save", "", "--appendonly", "no", "--protected-mode", "no"]
        own.append(subprocess.Popen(redis, stdout=subprocess.DEVNULL))
    return own


def main(arguments):
    folder, ports = arguments[0], [int(port) for port in arguments[1:4]]
    if len(arguments) == 5:
        serve(arguments[4], folder, *ports)
    current, own = None, []
    while True:
        with open(os.path.join(folder, "way")) as wanted:
            way = wanted.read().strip()
        if way and way != current:
            for process in own:
                process.kill()
                process.wait()
            current, own = way, begin(way, arguments)
        time.sleep(0.05)


main(sys.argv[1:])
