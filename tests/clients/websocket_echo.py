"""Echoes texts and bytes through a WebSocket with the stock library. Usage: websocket_echo.py URL"""
import sys

from websockets.sync.client import connect

with connect(sys.argv[1]) as stream:
    for message in ["hello", b"\x00" * 70000, "bye"]:
        stream.send(message)
        assert stream.recv(timeout=10) == message
print("websocket ok")
