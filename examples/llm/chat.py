"""Talk to an OpenAI-compatible endpoint from the terminal; the answer appears as it is written.

python chat.py http://127.0.0.1:8080
python chat.py http://127.0.0.1:8080 "What is a load balancer?"
OPENAI_BASE_URL=https://llm.example.com/v1 OPENAI_API_KEY=... python chat.py
"""

from __future__ import annotations

import argparse
import os
import sys

from openai import APIConnectionError, APIStatusError, OpenAI
from openai.types.chat import ChatCompletionMessageParam


def base_url(url: str) -> str:
    """Return the API's base URL for an endpoint's URL, with or without its `/v1`."""
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


def answer(client: OpenAI, model: str, messages: list[ChatCompletionMessageParam], max_tokens: int) -> str:
    """Print the model's answer piece by piece and return the whole of it."""
    pieces: list[str] = []
    with client.chat.completions.create(
        model=model, messages=messages, max_tokens=max_tokens, stream=True
    ) as stream:
        for chunk in stream:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                # The first token of an answer often begins with the space that separates it from its prompt.
                piece = piece if pieces else piece.lstrip()
                pieces.append(piece)
                print(piece, end="", flush=True)
    print()
    return "".join(pieces)


def converse(client: OpenAI, model: str, max_tokens: int) -> None:
    """Answer line after line, each with the conversation so far, until the input ends."""
    messages: list[ChatCompletionMessageParam] = []
    while True:
        try:
            question = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if question:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer(client, model, messages, max_tokens)})


def main() -> None:
    """Ask one question, or hold a conversation when none is given."""
    parser = argparse.ArgumentParser(description="Talk to an OpenAI-compatible endpoint.")
    parser.add_argument(
        "url", nargs="?", default=os.environ.get("OPENAI_BASE_URL"), help="default: $OPENAI_BASE_URL"
    )
    parser.add_argument("question", nargs="?", help="ask this and exit; default: a conversation")
    parser.add_argument("--token", default=os.environ.get("OPENAI_API_KEY"), help="default: $OPENAI_API_KEY")
    parser.add_argument("--model", help="default: the first that the endpoint offers")
    parser.add_argument(
        "--max-tokens", type=int, default=256, help="length of an answer (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if not arguments.url:
        parser.error("give the endpoint's URL, or set OPENAI_BASE_URL")

    # The client insists on a key; an endpoint without tokens does not look at it.
    client = OpenAI(base_url=base_url(arguments.url), api_key=arguments.token or "none")
    try:
        model = arguments.model or next(iter(client.models.list())).id
        if arguments.question:
            answer(client, model, [{"role": "user", "content": arguments.question}], arguments.max_tokens)
        else:
            converse(client, model, arguments.max_tokens)
    except APIStatusError as error:
        sys.exit(f"chat.py: {client.base_url} answered {error.status_code}: {error.message}")
    except APIConnectionError as error:
        sys.exit(f"chat.py: {client.base_url} does not answer: {error}")


if __name__ == "__main__":
    main()
