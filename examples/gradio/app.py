"""A demo that answers word by word."""

import os
import time
from collections.abc import Iterator

import gradio as gr


def greet(name: str) -> Iterator[str]:
    words = f"Hello {name}, this is revision {os.environ.get('DSTACK_REVISION', '?')}.".split()
    for count in range(1, len(words) + 1):
        time.sleep(0.1)
        yield " ".join(words[:count])


gr.Interface(fn=greet, inputs="text", outputs="text", api_name="greet").launch(
    server_name="127.0.0.1", server_port=int(os.environ["PORT"])
)
