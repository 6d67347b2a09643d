"""Git repositories for tests, and a web server that has them."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

AUTHOR = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")


def git(directory: Path, *arguments: str) -> str:
    """What Git prints."""
    done = subprocess.run(
        ["git", "-C", str(directory), *AUTHOR, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def repository(directory: Path, **files: str) -> Path:
    """A new repository with one commit on `main`."""
    directory.mkdir(parents=True)
    git(directory, "init", "--quiet", "--initial-branch=main")
    commit(directory, **files)
    return directory


def commit(directory: Path, **files: str) -> str:
    """Commit files, `__` in a name for a dot, and return the commit."""
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)
    git(directory, "add", "--all", "--force")
    git(directory, "commit", "--quiet", "--allow-empty", "--message=change")
    return git(directory, "rev-parse", "HEAD")


@contextlib.contextmanager
def serving(directory: Path, user: str, password: str) -> Iterator[str]:
    """Serve a bare repository by HTTP to one user, as a plain web server does; gives its URL."""
    git(directory, "update-server-info")
    expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") == expected:
                super().do_GET()
                return
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(directory.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{directory.name}"
    finally:
        server.shutdown()
        server.server_close()
