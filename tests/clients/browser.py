"""A browser without a screen: follows redirects, keeps cookies, fills in the forms of a provider of logins. Python's own library alone.

    browser.py JAR HOST:PORT=SOCKET URL [HEADER:VALUE ...]

Prints JSON: status, url, body, hops (status and address of every answer on the way), cookies (names by now). Cookies are kept in the file JAR.
What stands before `=` is met at a Unix socket: a provider on the loopback of another network namespace.
"""

import html.parser
import http.cookiejar
import json
import socket
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request

jar_file, (asked, met), url, extra = sys.argv[1], sys.argv[2].split("="), sys.argv[3], sys.argv[4:]
HOPS_MAX = 20
connect = socket.create_connection


class Wire(socket.socket):
    """A Unix socket, which knows no options of TCP."""

    def setsockopt(self, *_):
        pass


def led(address, *rest, **named):
    if "%s:%s" % address != asked:
        return connect(address, *rest, **named)
    wire = Wire(socket.AF_UNIX)
    wire.connect(met)
    return wire


socket.create_connection = led


class Form(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.action, self.fields = None, {}

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "form" and self.action is None:
            self.action = attributes.get("action", "")
        if tag in ("input", "button") and attributes.get("name"):
            self.fields.setdefault(attributes["name"], attributes.get("value") or "")


class Still(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


jar = http.cookiejar.MozillaCookieJar(jar_file)
try:
    jar.load(ignore_discard=True, ignore_expires=True)
except FileNotFoundError:
    pass
unproved = ssl.create_default_context()
unproved.check_hostname, unproved.verify_mode = False, ssl.CERT_NONE
opener = urllib.request.build_opener(
    Still, urllib.request.HTTPCookieProcessor(jar), urllib.request.HTTPSHandler(context=unproved), urllib.request.ProxyHandler({})
)
headers = dict(header.split(":", 1) for header in extra) or {"sec-fetch-mode": "navigate", "accept": "text/html"}
hops, data = [], None
while len(hops) < HOPS_MAX:
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        answer = opener.open(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    body = answer.read().decode("utf-8", "replace")
    hops.append([answer.status, url])
    if answer.status in (301, 302, 303, 307):
        url, data = urllib.parse.urljoin(url, answer.headers["location"]), None
        continue
    form = Form()
    form.feed(body)
    if answer.status == 200 and form.action and form.fields:
        # Whatever a form of the provider asks: the user is ada, agrees, and leaves where that is asked.
        fields = {**form.fields, "login": "ada", "password": "any", "logout": "yes"}
        url, data = urllib.parse.urljoin(url, form.action), urllib.parse.urlencode(fields).encode()
        continue
    break
jar.save(ignore_discard=True, ignore_expires=True)
print(json.dumps({"status": answer.status, "url": url, "body": body, "hops": hops, "cookies": sorted(c.name for c in jar)}))
