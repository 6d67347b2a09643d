"""Request the endpoint of a service, and print what it answers: `python request.py hello`."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

command = Path(sys.executable).with_name("prefect-dstack")
services = json.loads(subprocess.check_output([command, "ps", "--json"]))
url = next(service["url"] for service in services if service["name"] == sys.argv[1])
print(f"GET {url}")
with urllib.request.urlopen(url, timeout=10) as response:
    print(response.status, response.read().decode())
