"""A backend that misbehaves by path: /reset, /hang, /garbage; answers "fine" to anything else. Usage: bad_server.py PORT"""
import socket
import socketserver
import struct
import sys
import time


class Bad(socketserver.BaseRequestHandler):
    def handle(self):
        while head := self.request.recv(65536):
            path = head.split(b" ")[1] if b" " in head else b"/"
            if path == b"/reset":
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if path == b"/hang":
                time.sleep(60)
            elif path == b"/garbage":
                self.request.sendall(b"\x00\x01nonsense\r\n\r\n")
                return
            else:
                self.request.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfine\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server(("0.0.0.0", int(sys.argv[1])), Bad).serve_forever()
