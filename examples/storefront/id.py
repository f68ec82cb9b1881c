"""AN EXAMPLE, NOT FOR USE: an OpenID Connect provider that asks nobody for a password. Python's standard library, and openssl to sign.

    id.py PORT ISSUER CLIENT REDIRECT-URI AFTER-LOGOUT-URI

Knows one public client and whoever types a name. The issuer must be this machine's (`localhost` or a name below it). Keys, codes and
tokens live in memory: what starts anew has forgotten them.
"""

import base64
import hashlib
import html
import json
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

CODE_SECONDS, TOKEN_SECONDS, REFRESH_SECONDS = 60, 300, 12 * 3600
# Of codes and refresh tokens together; the oldest make room.
REMEMBERED_MAX = 1000
BODY_MAX_BYTES = 16 * 1024

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><link rel="icon" href="data:,"><style>
:root {{ color-scheme: light dark; --ground: #eef0f4; --card: #fff; --ink: #1c2430; --soft: #5b6675; --line: #d5dae2; --accent: #3b4cb8; --on-accent: #fff }}
@media (prefers-color-scheme: dark) {{ :root {{ --ground: #12161c; --card: #1a2029; --ink: #e6eaf0; --soft: #98a4b3; --line: #2b333f; --accent: #9aa6ff; --on-accent: #14183a }} }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1rem; box-sizing: border-box; background: var(--ground); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif }}
main {{ width: 100%; max-width: 22rem; padding: 1.75rem; box-sizing: border-box; border: 1px solid var(--line); border-radius: .75rem; background: var(--card) }}
h1 {{ margin: 0 0 .25rem; font-size: 1.375rem }} p {{ margin: 0 0 1.25rem; color: var(--soft) }} p:last-child {{ margin: 0 }} label {{ display: block; font-weight: 600; margin-bottom: .25rem }}
input, button {{ width: 100%; box-sizing: border-box; padding: .625rem .75rem; border-radius: .5rem; font: inherit }}
input {{ border: 1px solid var(--line); background: var(--ground); color: inherit; margin-bottom: .75rem }}
button {{ border: 0; background: var(--accent); color: var(--on-accent); font-weight: 600; cursor: pointer }}
a {{ color: var(--accent) }} :focus-visible {{ outline: 2px solid var(--accent); outline-offset: 2px }}
</style></head><body><main><h1>{title}</h1>{body}</main></body></html>
"""
FORM = """<p>An example’s provider: it believes whatever name you give.</p>
<form method="post"><label for="name">Name</label><input id="name" name="name" value="Ada" maxlength="60" required autofocus autocomplete="off">
<button>Log in</button></form>"""


def text64(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def openssl(*words, given=None):
    return subprocess.run(["openssl", *words], input=given, capture_output=True, check=True).stdout


class Key:
    """An RSA key that openssl made and uses; it lies in a folder of our own until we end."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.file = f"{self.folder.name}/key.pem"
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", self.file)
        modulus = bytes.fromhex(openssl("rsa", "-in", self.file, "-noout", "-modulus").decode().strip().partition("=")[2])
        self.public = {"kty": "RSA", "use": "sig", "alg": "RS256", "n": text64(modulus), "e": "AQAB"}
        self.public["kid"] = text64(hashlib.sha256(modulus).digest()[:9])

    def sign(self, claims):
        head = {"alg": "RS256", "typ": "JWT", "kid": self.public["kid"]}
        message = ".".join(text64(json.dumps(part).encode()) for part in (head, claims))
        return message + "." + text64(openssl("dgst", "-sha256", "-sign", self.file, given=message.encode()))


class Memory:
    """What a code or a refresh token stands for. Each is good once, and for a while."""

    def __init__(self):
        self.lock, self.known = threading.Lock(), {}

    def keep(self, what, seconds):
        name = secrets.token_urlsafe(24)
        with self.lock:
            while len(self.known) >= REMEMBERED_MAX:
                del self.known[next(iter(self.known))]
            self.known[name] = (time.time() + seconds, what)
        return name

    def take(self, name):
        with self.lock:
            until, what = self.known.pop(name, (0, None))
        return what if time.time() < until else None


class Wrong(Exception):
    """What a client has asked for and may not have: the error's code, and why."""


class Provider(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, _, query = self.path.partition("?")
        asked = fields(query)
        if path == "/.well-known/openid-configuration":
            self.json(200, discovery())
        elif path == "/keys":
            self.json(200, {"keys": [key.public]})
        elif path == "/authorize":
            self.authorize(asked, None)
        elif path == "/logout":
            self.logout(asked)
        elif path == "/healthz":
            self.json(200, {})
        else:
            self.page(404, "No such page", "")

    def do_POST(self):
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > BODY_MAX_BYTES:
            self.close_connection = True
            self.page(413, "Too long", "")
            return
        path, _, query = self.path.partition("?")
        said = fields(self.rfile.read(int(length)).decode(errors="replace"))
        if path == "/authorize":
            self.authorize(fields(query), said.get("name", "").strip())
        elif path == "/token":
            self.token(said)
        else:
            self.page(404, "No such page", "")

    def authorize(self, asked, name):
        # A client or an address that is not known is told here, and nowhere else (RFC 6749, section 4.1.2.1).
        if asked.get("client_id") != client or asked.get("redirect_uri") != redirect_uri:
            self.page(400, "Unknown client", "<p>This provider knows one client, and sends people back to one address.</p>")
            return
        back = {"state": asked.get("state", ""), "iss": issuer}
        wanted = {"response_type": "code", "code_challenge_method": "S256"}
        if any(asked.get(field) != value for field, value in wanted.items()) or "openid" not in asked.get("scope", "").split():
            self.redirect(redirect_uri, {**back, "error": "invalid_request", "error_description": "only codes with PKCE, and scope openid"})
        elif not name:
            self.page(200, "Who are you?", FORM)
        else:
            code = {"name": name[:60], "nonce": asked.get("nonce"), "challenge": asked.get("code_challenge"), "since": int(time.time())}
            self.redirect(redirect_uri, {**back, "code": memory.keep(("code", code), CODE_SECONDS)})

    def token(self, said):
        try:
            self.json(200, tokens(self.granted(said)))
        except Wrong as wrong:
            code, why = wrong.args
            self.json(400, {"error": code, "error_description": why})

    def granted(self, said):
        """Who it is, by a code or a refresh token."""
        if said.get("client_id") != client:
            raise Wrong("invalid_client", "unknown client")
        kinds = {"authorization_code": ("code", "code"), "refresh_token": ("refresh", "refresh_token")}
        kind, field = kinds.get(said.get("grant_type"), (None, None))
        if kind is None:
            raise Wrong("unsupported_grant_type", "codes and refresh tokens")
        known = memory.take(said.get(field, ""))
        if known is None or known[0] != kind:
            raise Wrong("invalid_grant", "unknown, used or over")
        who = dict(known[1])
        if kind == "code":
            shown = text64(hashlib.sha256(said.get("code_verifier", "").encode()).digest())
            if said.get("redirect_uri") != redirect_uri or shown != who.pop("challenge"):
                raise Wrong("invalid_grant", "the code is somebody else's")
        return who

    def logout(self, asked):
        after = asked.get("post_logout_redirect_uri")
        if after == after_logout_uri:
            self.redirect(after, {"state": asked["state"]} if "state" in asked else {})
        else:
            self.page(200, "Logged out", f'<p><a href="{html.escape(after_logout_uri)}">Back to the shop</a></p>')

    def redirect(self, uri, parameters):
        self.answer(303, "text/plain", b"", [("location", uri + ("?" + urlencode(parameters) if parameters else ""))])

    def page(self, status, title, body):
        safety = [("x-frame-options", "DENY"), ("referrer-policy", "no-referrer"), ("x-content-type-options", "nosniff")]
        self.answer(status, "text/html; charset=utf-8", PAGE.format(title=title, body=body).encode(), safety)

    def json(self, status, value):
        self.answer(status, "application/json", json.dumps(value).encode())

    def answer(self, status, kind, body, headers=()):
        self.send_response(status)
        for name, value in [("content-type", kind), ("content-length", str(len(body))), ("cache-control", "no-store"), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def fields(text):
    return {name: values[0] for name, values in parse_qs(text, keep_blank_values=True).items()}


def discovery():
    ends = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys", "end_session_endpoint": "logout"}
    return {
        "issuer": issuer,
        **{name: f"{issuer}/{path}" for name, path in ends.items()},
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "token_endpoint_auth_methods_supported": ["none"],
        "code_challenge_methods_supported": ["S256"],
        "scopes_supported": ["openid", "profile", "email"],
        "authorization_response_iss_parameter_supported": True,
    }


def tokens(who):
    now = int(time.time())
    nick = "".join(letter for letter in who["name"].lower() if letter.isascii() and letter.isalnum()) or "somebody"
    claims = {"iss": issuer, "aud": client, "sub": text64(hashlib.sha256(who["name"].encode()).digest()[:12]), "iat": now}
    claims |= {"exp": now + TOKEN_SECONDS, "auth_time": who["since"], "name": who["name"], "email": f"{nick}@shop.localhost"}
    if who.get("nonce") is not None:
        claims["nonce"] = who["nonce"]
    return {
        "access_token": secrets.token_urlsafe(24),
        "token_type": "Bearer",
        "expires_in": TOKEN_SECONDS,
        "id_token": key.sign(claims),
        "refresh_token": memory.keep(("refresh", {**who, "nonce": None}), REFRESH_SECONDS),
    }


if __name__ == "__main__":
    port, issuer, client, redirect_uri, after_logout_uri = sys.argv[1:]
    host = urlsplit(issuer).hostname or ""
    if host not in ("localhost", "127.0.0.1") and not host.endswith(".localhost"):
        sys.exit(f"id.py is an example, for this machine alone: {issuer} is not below localhost")
    key, memory = Key(), Memory()
    ThreadingHTTPServer(("", int(port)), Provider).serve_forever()
