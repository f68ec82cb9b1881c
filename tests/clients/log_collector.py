"""An OTLP/gRPC collector of log records: one JSON line per record on standard output. Usage: log_collector.py PORT"""
import json
import sys
from concurrent import futures

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as messages
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as service


class Collector(service.LogsServiceServicer):
    def Export(self, request, context):
        for resource in request.resource_logs:
            who = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    print(json.dumps({
                        "service": who.get("service.name"), "severity": record.severity_text, "event": record.event_name,
                        "trace": record.trace_id.hex(), "span": record.span_id.hex(), "body": record.body.string_value,
                        "attributes": {a.key: a.value.string_value or a.value.int_value for a in record.attributes},
                    }), flush=True)
        return messages.ExportLogsServiceResponse()


# One worker: two would write into each other's lines.
server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=[("grpc.so_reuseport", 0)])
service.add_LogsServiceServicer_to_server(Collector(), server)
assert server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}"), "the port is taken"
server.start()
print("ready", flush=True)
server.wait_for_termination()
