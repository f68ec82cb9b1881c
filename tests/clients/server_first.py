"""Times a server's first byte while the client keeps silent. Usage: server_first.py HOST PORT TIMES; a line "MS GREETING" each time."""
import socket
import sys
import time

for _ in range(int(sys.argv[3])):
    begin = time.monotonic()
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as stream:
        greeting = stream.recv(1024)
        print(f"{(time.monotonic() - begin) * 1000:.1f} {greeting.decode().strip()}", flush=True)
