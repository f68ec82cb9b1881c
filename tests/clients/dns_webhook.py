"""Writes the records that the control plane asks for into pebble-challtestsrv's DNS: dns_webhook.py PORT MANAGEMENT_URL TOKEN."""
import http.server
import json
import sys
import urllib.request

port, management, token = int(sys.argv[1]), sys.argv[2], sys.argv[3]
WORDS = {"/present": "/set-txt", "/cleanup": "/clear-txt"}


class Webhook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        record = json.loads(self.rfile.read(int(self.headers["content-length"])))
        word = WORDS.get(self.path)
        if word is None or self.headers["authorization"] != f"Bearer {token}":
            self.send_error(403)
            return
        body = json.dumps({"host": record["fqdn"], "value": record["value"]}).encode()
        urllib.request.urlopen(management + word, body, 5).read()
        print(self.path, record["fqdn"], flush=True)
        self.send_response(204)
        self.end_headers()


http.server.ThreadingHTTPServer(("0.0.0.0", port), Webhook).serve_forever()
