"""Runs the time server over streamable HTTP until its standard input closes; prints a line when it listens.

serve_http.py PORT
"""

import os
import socket
import sys
import threading
import time

from mcp_server_time.server import create_server


def say_when_it_listens(port):
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.02)
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


def main():
    port = int(sys.argv[1])
    threading.Thread(target=say_when_it_listens, args=(port,), daemon=True).start()
    create_server("UTC").run(transport="streamable-http", host="127.0.0.1", port=port)


main()
