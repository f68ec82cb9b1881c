"""An OTLP/gRPC collector in thirty lines: one JSON line per span on standard output. Usage: collector.py PORT"""
import json
import sys
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service


class Collector(service.TraceServiceServicer):
    def Export(self, request, context):
        for resource in request.resource_spans:
            who = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    print(json.dumps({
                        "service": who.get("service.name"), "kind": span.kind, "name": span.name,
                        "trace": span.trace_id.hex(), "span": span.span_id.hex(), "parent": span.parent_span_id.hex(),
                        "attributes": {a.key: a.value.string_value or a.value.int_value for a in span.attributes},
                    }), flush=True)
        return messages.ExportTraceServiceResponse()


# One worker: two would write into each other's lines.
server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
service.add_TraceServiceServicer_to_server(Collector(), server)
assert server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}"), "the port is taken"
server.start()
print("ready", flush=True)
server.wait_for_termination()
