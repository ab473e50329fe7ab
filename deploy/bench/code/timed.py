"""Runs a command and prints how long it took, as one line of JSON."""

import json
import subprocess
import sys
import time

began = time.monotonic()
subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL)
print(json.dumps({"seconds": time.monotonic() - began}))
