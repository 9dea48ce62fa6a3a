"""Reads what a server sends until it closes; prints the bytes a second since the first: drain.py HOST PORT"""

import socket
import sys
import time

with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    buffer = bytearray(1 << 20)
    connection.recv_into(buffer)
    began, total = time.perf_counter(), 0
    while count := connection.recv_into(buffer):
        total += count
    print(total / (time.perf_counter() - began))
