"""Runs llama.cpp's own HTTP server until its standard input closes; prints its address when it is ready.

serve.py FILE.gguf PORT SLOTS WINDOW
"""

import os
import sys

import xllamacpp


def main():
    file, port, slots, window = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.port = port
    params.n_parallel = slots
    params.n_ctx = slots * window
    params.n_gpu_layers = 0
    params.endpoint_slots = True
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    # Its threads would go on.
    sys.stdout.flush()
    os._exit(0)


main()
