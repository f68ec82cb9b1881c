"""Bidirectional streams with stock grpcio: many messages, cancelling, deadlines, back-pressure. Usage: grpc_streams.py HOST:PORT"""
import itertools
import sys
import threading
import time

import grpc

MESSAGES = 10_000
# Messages whose reply has not come; the test service's library takes hundreds of tiny frames that nobody has read yet for an attack.
AHEAD = 64
LARGE_COUNT, LARGE_BYTES = 600, 65_000
# What may be under way while nobody reads: windows of two proxies and both ends, and some room.
STALL_BYTES_MAX = 20 << 20


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def request(text, delay_ms=0):
    text = text.encode()
    return b"\x0a" + varint(len(text)) + text + (b"\x18" + varint(delay_ms) if delay_ms else b"")


def message(reply):
    """The first field, which is the text; its length is a varint."""
    length, shift, at = 0, 0, 1
    while True:
        byte = reply[at]
        length, shift, at = length | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return reply[at : at + length].decode()


def many(chat):
    started, ahead = time.monotonic(), threading.Semaphore(AHEAD)

    def numbers():
        for number in range(MESSAGES):
            ahead.acquire()
            yield request(str(number))

    got = []
    for reply in chat(numbers(), timeout=60):
        got.append(message(reply))
        ahead.release()
    assert got == [str(number) for number in range(MESSAGES)], f"{len(got)} replies, or not in their order"
    print(f"{MESSAGES} messages there and back in {time.monotonic() - started:.2f} s")


def cancelled(chat):
    stop, asked = threading.Event(), []

    def endless():
        for number in itertools.count():
            if stop.is_set():
                return
            asked.append(number)
            yield request(str(number))
            time.sleep(0.01)

    call = chat(endless())
    assert [message(next(call)) for _ in range(3)] == ["0", "1", "2"]
    started = time.monotonic()
    call.cancel()
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.CANCELLED, error
    assert call.code() is grpc.StatusCode.CANCELLED and time.monotonic() - started < 1
    stop.set()
    print(f"cancelled after 3 replies, in {(time.monotonic() - started) * 1000:.0f} ms")


def unread(chat):
    sent = [0]

    def large():
        for number in range(LARGE_COUNT):
            sent[0] += LARGE_BYTES
            yield request(str(number).zfill(LARGE_BYTES))

    replies = chat(large(), timeout=60)
    first = message(next(replies))
    time.sleep(3)
    stalled = sent[0]
    time.sleep(1)
    assert sent[0] == stalled, "the sender goes on though nobody reads"
    assert stalled < STALL_BYTES_MAX, f"{stalled} bytes are under way"
    got = [first] + [message(reply) for reply in replies]
    assert [int(text[-8:]) for text in got] == list(range(LARGE_COUNT))
    print(f"nobody reads: {stalled >> 10} KiB of {LARGE_COUNT * LARGE_BYTES >> 10} KiB were taken; read on, all came")


def late(unary, chat):
    """The answer's head is there, and nothing after it: the client, both proxies and the server all know of the deadline."""
    for _ in range(10):
        started, call = time.monotonic(), chat(iter([request("now"), request("late", 5_000)]), timeout=0.3)
        assert message(next(call)) == "now"
        for ask in (lambda: next(call), lambda: unary(request("late", 5_000), timeout=0.3)):
            try:
                ask()
                raise AssertionError("an answer came in time")
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error
        took = time.monotonic() - started
        assert 0.6 <= took < 1.6, f"{took} s"
    print("twenty deadlines were exceeded, and told as that")


with grpc.insecure_channel(sys.argv[1]) as channel:
    unary = channel.unary_unary("/meshwright.echo.v1.Echo/Call")
    stream = channel.stream_stream("/meshwright.echo.v1.Echo/Chat")
    many(stream)
    cancelled(stream)
    late(unary, stream)
    unread(stream)
    # All is as before.
    assert message(unary(request("hello"), timeout=10)) == "hello"
print("grpc streams ok")
