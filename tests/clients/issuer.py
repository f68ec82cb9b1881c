"""An issuer of tokens: PyJWT signs them, and the key set is served over HTTPS below an authority of its own.

    issuer.py FOLDER NAME HTTPS-PORT HTTP-PORT

Writes the authority to FOLDER/ca.pem. Over HTTP (for the test): POST /mint {"alg", "claims", "headers", "key"} answers a token, POST /rotate
makes new keys, POST /away and /back end and begin the key set, GET /fetches counts how often it was asked for.
"""

import datetime
import json
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

folder, name, https_port, http_port = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def certificate(subject, issuer, key, signer, ca):
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def pem(thing):
    if hasattr(thing, "private_bytes"):
        return thing.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    return thing.public_bytes(serialization.Encoding.PEM)


class State:
    def __init__(self):
        self.generation, self.fetches, self.away = 0, 0, False
        self.rotate()

    def rotate(self):
        self.generation += 1
        self.keys = {
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "ES384": ec.generate_private_key(ec.SECP384R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
            "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        }
        for other in ("RS384", "RS512", "PS256", "PS384", "PS512"):
            self.keys[other] = self.keys["RS256"]

    def kid(self, alg):
        return f"{'RS256' if alg[:2] in ('RS', 'PS') else alg}-{self.generation}"

    def jwks(self):
        algorithms = jwt.algorithms.get_default_algorithms()
        listed = []
        for alg in ("ES256", "ES384", "EdDSA", "RS256"):
            key = json.loads(algorithms[alg].to_jwk(self.keys[alg].public_key()))
            key.pop("key_ops", None)
            listed.append({**key, "kid": self.kid(alg), "use": "sig"})
        return {"keys": listed}

    def mint(self, order):
        alg = order["alg"]
        headers = {"kid": self.kid(alg), **order.get("headers", {})}
        key = self.keys.get(alg)
        if order.get("key") == "stranger":
            key = ec.generate_private_key(ec.SECP256R1())
        if alg == "none":
            return jwt.encode(order["claims"], None, algorithm="none", headers=headers)
        if alg.startswith("HS"):
            # With the public key as the secret: PyJWT refuses a PEM, so its body is taken.
            public = self.keys["RS256"].public_key()
            secret = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
            return jwt.encode(order["claims"], secret, algorithm=alg, headers={"kid": self.kid("RS256")})
        return jwt.encode(order["claims"], key, algorithm=alg, headers=headers)


state = State()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=()):
        body = body.encode()
        self.send_response(status)
        for header, value in headers:
            self.send_header(header, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/fetches":
            return self.answer(200, str(state.fetches))
        if self.path != "/keys" or not isinstance(self.connection, ssl.SSLSocket):
            return self.answer(404, "")
        state.fetches += 1
        if state.away:
            return self.answer(503, "away")
        self.answer(200, json.dumps(state.jwks()), [("cache-control", "max-age=3600")])

    def do_POST(self):
        order = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/mint":
            return self.answer(200, state.mint(json.loads(order)))
        if self.path == "/rotate":
            state.rotate()
        elif self.path in ("/away", "/back"):
            state.away = self.path == "/away"
        else:
            return self.answer(404, "")
        self.answer(200, "done")


def main():
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("issuer's authority", "issuer's authority", root_key, root_key, True)
    with open(f"{folder}/ca.pem", "wb") as file:
        file.write(pem(root))
    with open(f"{folder}/server.pem", "wb") as file:
        file.write(pem(certificate(name, "issuer's authority", key, root_key, False)) + pem(key))
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(f"{folder}/server.pem")
    https = ThreadingHTTPServer(("", https_port), Handler)
    https.socket = secure.wrap_socket(https.socket, server_side=True)
    threading.Thread(target=https.serve_forever, daemon=True).start()
    ThreadingHTTPServer(("", http_port), Handler).serve_forever()


main()
