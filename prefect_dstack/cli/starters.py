"""The files that `init` writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["STARTERS", "Answers", "Starter"]


@dataclass(frozen=True)
class Answers:
    """What was answered.

    Attributes:
        name: The name of what is started.
        what: The model, or the command.
        gpu: The GPU to ask for, such as `24GB`; empty: none.
        replicas: How many.
    """

    name: str
    what: str
    gpu: str = ""
    replicas: int = 1


@dataclass(frozen=True)
class Starter:
    """A kind of file.

    Attributes:
        summary: What it is, in a few words.
        asks: The question for `Answers.what`.
        what: The default answer to it.
        gpu: The default GPU; None: it is not asked for.
        write: Makes the text of the file.
        scales: Whether it has replicas.
    """

    summary: str
    asks: str
    what: str
    gpu: str | None
    write: Callable[[Answers], str]
    scales: bool = True


def _quoted(text: str) -> str:
    """Return a text as YAML has it in any case."""
    import json

    return json.dumps(text)


def _head(kind: str, answers: Answers) -> str:
    return f"""\
# prefect-dstack apply deploys it, again and again; every key: prefect-dstack schema
type: {kind}
name: {answers.name}
"""


def _replicas(answers: Answers) -> str:
    return f"""
# Requests go to whichever is least busy; new ones take over without a lost request.
replicas: {answers.replicas}
"""


def _gpu(answers: Answers) -> str:
    if not answers.gpu:
        return ""
    return f"""
# A machine of a fleet or a cloud that has it; prefect-dstack offer shows which.
resources:
  gpu: {_quoted(answers.gpu)}
"""


def _secret_token() -> str:
    return """\
  # For models that need a licence to be accepted: set HF_TOKEN here and remove the '#'.
  # - HF_TOKEN
"""


def _probe(path: str) -> str:
    return f"""
# It gets requests only while this is answered with a status of 200 to 299.
probes:
  - type: http
    url: {path}
"""


def _vllm(answers: Answers) -> str:
    return (
        _head("service", answers)
        + f"""
image: vllm/vllm-openai:latest
env:
  - MODEL_ID={answers.what}
{_secret_token()}commands:
  - vllm serve "$MODEL_ID" --port "$PORT"
port: 8000
# Published as an OpenAI endpoint too.
model: {_quoted(answers.what)}
"""
        + _gpu(answers)
        + _probe("/health")
        + _replicas(answers)
    )


def _tgi(answers: Answers) -> str:
    return (
        _head("service", answers)
        + f"""
image: ghcr.io/huggingface/text-generation-inference:latest
env:
  - MODEL_ID={answers.what}
{_secret_token()}commands:
  - text-generation-launcher --port "$PORT"
port: 8000
# Published as an OpenAI endpoint too.
model: {_quoted(answers.what)}
"""
        + _gpu(answers)
        + _probe("/health")
        + _replicas(answers)
    )


def _llama_cpp(answers: Answers) -> str:
    return (
        _head("service", answers)
        + f"""
image: ghcr.io/ggml-org/llama.cpp:server
env:
  - MODEL_ID={answers.what}
commands:
  - /app/llama-server -hf "$MODEL_ID" --host 0.0.0.0 --port "$PORT"
port: 8000
# Published as an OpenAI endpoint too.
model: {_quoted(answers.what)}
"""
        + _gpu(answers)
        + _probe("/health")
        + _replicas(answers)
    )


def _fastapi(answers: Answers) -> str:
    return (
        _head("service", answers)
        + f"""
# Without an 'image' it runs on this machine, from a copy of this directory.
commands:
  - exec uvicorn {answers.what} --port "$PORT"
port: 8000
"""
        + _probe("/docs")
        + _replicas(answers)
    )


def _gradio(answers: Answers) -> str:
    return (
        _head("service", answers)
        + f"""
# Without an 'image' it runs on this machine, from a copy of this directory.
commands:
  - GRADIO_SERVER_PORT="$PORT" exec python3 {answers.what}
port: 7860
"""
        + _probe("/")
        + _replicas(answers)
    )


def _task(answers: Answers) -> str:
    return (
        _head("task", answers)
        + f"""
# Without an 'image' it runs on this machine, from a copy of this directory.
# image: python:3.12
commands:
  - {_quoted(answers.what)}
"""
        + _gpu(answers)
    )


def _dev(answers: Answers) -> str:
    return (
        _head("dev-environment", answers)
        + f"""
image: {_quoted(answers.what)}
# Run once, before anybody is let in.
# init:
#   - pip install -r requirements.txt
"""
        + _gpu(answers)
    )


STARTERS: Mapping[str, Starter] = {
    "vllm": Starter("a language model, with vLLM", "Model", "Qwen/Qwen2.5-0.5B-Instruct", "24GB", _vllm),
    "tgi": Starter("a language model, with TGI", "Model", "Qwen/Qwen2.5-0.5B-Instruct", "24GB", _tgi),
    "llama.cpp": Starter(
        "a language model on CPUs, with llama.cpp", "Model", "Qwen/Qwen2.5-0.5B-Instruct-GGUF", "", _llama_cpp
    ),
    "fastapi": Starter("a web application, with FastAPI", "Application", "main:app", None, _fastapi),
    "gradio": Starter("a demo, with Gradio", "File", "app.py", None, _gradio),
    "task": Starter(
        "a command that is run to its end", "Command", "python3 train.py", "", _task, scales=False
    ),
    "dev": Starter("a machine to work on", "Image", "python:3.12", "", _dev, scales=False),
}
