"""Real hosts on one machine: OpenSSH and Docker Engines in Linux namespaces, for tests that must not pretend.

```python
from tests.testbed.images import load_image
from tests.testbed.testbed import Testbed

with Testbed() as testbed:
    alpha, beta = testbed.hosts("alpha", "beta", internal_network="10.78.0.0/24")
    load_image(alpha, "app")
    alpha.exec(["docker", "run", "-d", "-p", "8000:8000", "--restart", "unless-stopped", "testbed/app:1"])
    alpha.reboot()
    beta.partition()
```

Nothing of it reaches beyond this machine, and everything is removed at the end, however the end comes.
"""
