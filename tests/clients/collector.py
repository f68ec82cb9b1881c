"""An OTLP collector: one JSON line per span on standard output. Usage: collector.py PORT [grpc|http [ANSWER...]]

The ANSWERs are given in order to requests with a CLIENT span, then success: names of gRPC's codes or statuses of HTTP, `+SECS` behind
one asks for a pause, and `partial` refuses one span of the request."""
import json
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

port, protocol, script = int(sys.argv[1]), (sys.argv[2:3] or ["grpc"])[0], sys.argv[3:]
# One at a time: two would write into each other's lines, and take each other's answers.
turn = threading.Lock()
CLIENT = 3


def spans_of(request):
    for resource in request.resource_spans:
        who = {a.key: a.value.string_value for a in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield who, span


def take(request):
    """The answer to a request, and its pause. What is taken is printed."""
    with turn:
        client = any(span.kind == CLIENT for _, span in spans_of(request))
        answer, _, pause = script.pop(0).partition("+") if client and script else ("", "", "")
        print(json.dumps({"answer": answer or "ok", "client": client}), flush=True)
        if answer in ("", "partial"):
            for who, span in spans_of(request):
                print(json.dumps({
                    "service": who.get("service.name"), "kind": span.kind, "name": span.name,
                    "trace": span.trace_id.hex(), "span": span.span_id.hex(), "parent": span.parent_span_id.hex(),
                    "attributes": {a.key: a.value.string_value or a.value.int_value for a in span.attributes},
                }), flush=True)
        return answer, int(pause or 0)


def response(answer):
    reply = messages.ExportTraceServiceResponse()
    if answer == "partial":
        reply.partial_success.rejected_spans = 1
        reply.partial_success.error_message = "one too many"
    return reply


def retry_info(secs):
    """google.rpc.Status with a RetryInfo, as bytes."""
    delay = bytes([0x0a, 2, 0x08, secs])
    url = b"type.googleapis.com/google.rpc.RetryInfo"
    detail = bytes([0x0a, len(url)]) + url + bytes([0x12, len(delay)]) + delay
    return bytes([0x1a, len(detail)]) + detail


class Collector(service.TraceServiceServicer):
    def Export(self, request, context):
        answer, pause = take(request)
        if answer in ("", "partial"):
            return response(answer)
        if pause:
            context.set_trailing_metadata([("grpc-status-details-bin", retry_info(pause))])
        context.abort(grpc.StatusCode[answer], "as told")


class Posted(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        fits = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
        answer, pause = take(messages.ExportTraceServiceRequest.FromString(body)) if fits else ("404", 0)
        reply = response(answer).SerializeToString()
        self.send_response(200 if answer in ("", "partial") else int(answer))
        if pause:
            self.send_header("retry-after", str(pause))
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


if protocol == "http":
    server = ThreadingHTTPServer(("127.0.0.1", port), Posted)
    print("ready", flush=True)
    server.serve_forever()
else:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    service.add_TraceServiceServicer_to_server(Collector(), server)
    assert server.add_insecure_port(f"127.0.0.1:{port}"), "the port is taken"
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()
