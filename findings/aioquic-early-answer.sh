#!/bin/sh
# aioquic 1.7.2, client of HTTP/3: an upload that is answered before it has ended ends in FrameUnexpected, and the answer is there all the same.
#
# A server may answer a request before it has seen all of it, and ask by STOP_SENDING with H3_NO_ERROR that the rest be left out; the client must
# not throw the answer away for that (RFC 9114, section 4.1). aioquic's QUIC half resets its side of the stream and, once the answer has ended,
# forgets it. Its HTTP/3 half goes by the stream's id, makes a fresh record for one that is forgotten, and so refuses the next piece of the body
# with FrameUnexpected: "DATA frame is not allowed in this state", the words for a peer that breaks the protocol. Expected: the piece is dropped,
# or the error says that the stream has ended. Seen by the application: an exception in the middle of an upload, although the events before it
# hold a whole answer (here 401). Small uploads never show it. Who uploads by aioquic has to look, before each piece, whether the answer has ended.
#
# Exits non-zero when this changes. Needs Python with venv and pip; works in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet aioquic==1.7.2 cryptography==50.0.2
cat > "$folder/early.py" <<'PYTHON'
import asyncio, datetime, ssl, sys
from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3_ALPN, ErrorCode, FrameUnexpected, H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

folder = sys.argv[1]
key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
now = datetime.datetime.now(datetime.timezone.utc)
made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
made = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
open(folder + "/cert.pem", "wb").write(made.public_bytes(serialization.Encoding.PEM))
open(folder + "/key.pem", "wb").write(key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


class Server(QuicConnectionProtocol):
    """Answers 401 as soon as it has the head, and wants no body."""

    http = None

    def quic_event_received(self, event):
        self.http = self.http or H3Connection(self._quic)
        for told in self.http.handle_event(event):
            if isinstance(told, HeadersReceived):
                self.http.send_headers(told.stream_id, [(b":status", b"401")], end_stream=True)
                self._quic.stop_stream(told.stream_id, ErrorCode.H3_NO_ERROR)
                self.transmit()


class Client(QuicConnectionProtocol):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.http, self.answers = H3Connection(self._quic), []

    def quic_event_received(self, event):
        for told in self.http.handle_event(event):
            if isinstance(told, HeadersReceived):
                self.answers.append((dict(told.headers)[b":status"], told.stream_ended))


async def main():
    settings = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    settings.load_cert_chain(folder + "/cert.pem", folder + "/key.pem")
    server = await serve("127.0.0.1", 0, configuration=settings, create_protocol=Server)
    port = server._transport.get_extra_info("sockname")[1]
    settings = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
    async with connect("127.0.0.1", port, configuration=settings, create_protocol=Client) as client:
        stream = client._quic.get_next_available_stream_id()
        client.http.send_headers(stream, [
            (b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/"), (b"content-length", b"2000")])
        seen = None
        for piece in range(2):
            try:
                client.http.send_data(stream, b"x" * 1000, end_stream=piece == 1)
            except FrameUnexpected as error:
                seen = (piece, str(error), client.answers)
                break
            client.transmit()
            await asyncio.sleep(0.5)
    print(seen)
    assert seen == (1, "DATA frame is not allowed in this state", [(b"401", True)]), "it has changed"


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/early.py" "$folder"
