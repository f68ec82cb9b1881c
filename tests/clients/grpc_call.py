"""One unary call and one bidirectional stream with stock grpcio. Usage: grpc_call.py HOST:PORT"""
import sys

import grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    call = channel.unary_unary("/meshwright.echo.v1.Echo/Call")
    reply = call(b"\x0a\x05hello", timeout=10)
    assert reply.startswith(b"\x0a\x05hello"), reply
    chat = channel.stream_stream("/meshwright.echo.v1.Echo/Chat")
    replies = list(chat(iter([b"\x0a\x01a", b"\x0a\x01b", b"\x0a\x01c"]), timeout=10))
    assert [r[2:3] for r in replies] == [b"a", b"b", b"c"], replies
    try:
        call(b"\x10\x05", timeout=10)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND, error
    else:
        raise AssertionError("the wish for NOT_FOUND was not heard")
print("grpc ok")
