"""A client of HTTP/3 by aioquic. `http3.py CA ADDRESS:PORT HOST ORDER…`, each order a line of JSON on standard output:

get PATH            one request
post PATH BYTES     an upload of so many bytes, whose SHA-256 is told
many PATH COUNT     so many requests at once on one connection
load PATH SECONDS   four at a time on one connection, for so long; how many were answered, and how many were not with 200
"""

import asyncio
import hashlib
import json
import os
import ssl
import sys
import time

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamReset

PIECE = 64 * 1024


class Client(QuicConnectionProtocol):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.http = H3Connection(self._quic)
        self.waiting = {}
        self.failed = None

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            self.failed = f"the connection ended: {event.error_code:#x} {event.reason_phrase}"
            for _, _, done in self.waiting.values():
                if not done.done():
                    done.set_exception(ConnectionError(self.failed))
        if isinstance(event, StreamReset) and event.stream_id in self.waiting:
            done = self.waiting[event.stream_id][2]
            if not done.done():
                done.set_exception(ConnectionError(f"the stream was reset: {event.error_code:#x}"))
        for told in self.http.handle_event(event):
            if not isinstance(told, (HeadersReceived, DataReceived)) or told.stream_id not in self.waiting:
                continue
            head, body, done = self.waiting[told.stream_id]
            if isinstance(told, HeadersReceived):
                head.extend(told.headers)
            else:
                body.append(told.data)
            if told.stream_ended and not done.done():
                done.set_result(None)

    async def ask(self, host, path, body=None):
        if self.failed:
            raise ConnectionError(self.failed)
        stream = self._quic.get_next_available_stream_id()
        head, answer, done = [], [], asyncio.get_running_loop().create_future()
        self.waiting[stream] = (head, answer, done)
        method = b"GET" if body is None else b"POST"
        fields = [(b":method", method), (b":scheme", b"https"), (b":authority", host.encode()), (b":path", path.encode())]
        if body is not None:
            fields.append((b"content-length", str(len(body)).encode()))
        self.http.send_headers(stream, fields, end_stream=body is None)
        for begin in range(0, len(body or b""), PIECE):
            self.http.send_data(stream, body[begin : begin + PIECE], end_stream=begin + PIECE >= len(body))
            self.transmit()
            await asyncio.sleep(0)
        self.transmit()
        try:
            await asyncio.wait_for(done, 60)
        finally:
            del self.waiting[stream]
        fields = {name.decode(): value.decode() for name, value in head}
        return int(fields[":status"]), fields, b"".join(answer)


async def order(client, host, words):
    if words[0] == "get":
        status, fields, body = await client.ask(host, words[1])
        return {"status": status, "headers": fields, "body": body.decode()}
    if words[0] == "post":
        sent = os.urandom(int(words[2]))
        status, _, body = await client.ask(host, words[1], sent)
        same = hashlib.sha256(body).hexdigest() == hashlib.sha256(sent).hexdigest()
        return {"status": status, "bytes": len(body), "same": same}
    if words[0] == "many":
        answers = await asyncio.gather(*(client.ask(host, words[1]) for _ in range(int(words[2]))))
        return {"statuses": sorted({status for status, _, _ in answers}), "count": len(answers)}
    ends, answered, failures = time.monotonic() + float(words[2]), 0, []

    async def one():
        nonlocal answered
        while time.monotonic() < ends:
            try:
                status, _, _ = await client.ask(host, words[1])
            except (ConnectionError, TimeoutError) as error:
                failures.append(repr(error))
                return
            answered += 1
            if status != 200:
                failures.append(str(status))

    await asyncio.gather(*(one() for _ in range(4)))
    return {"answered": answered, "failures": failures}


async def main(authority, address, host, words):
    name, port = address.rsplit(":", 1)
    settings = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=host, max_data=16 << 20, idle_timeout=10)
    settings.max_stream_data = 4 << 20
    settings.load_verify_locations(authority)
    settings.verify_mode = ssl.CERT_REQUIRED
    async with connect(name, int(port), configuration=settings, create_protocol=Client) as client:
        print(json.dumps(await order(client, host, words)), flush=True)


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
