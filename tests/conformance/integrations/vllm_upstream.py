"""vLLM's own HTTP layer with a fake engine: its routes, its check of every request and its models of every answer are the package's,
as `vllm serve` mounts them; only the words come from the suite. It answers the prompts that it is given on stdin as JSON with their
responses, whole or word by word, and prints its address.

    python vllm_upstream.py < known.json
"""

import json
import re
import socket
import sys
from http import HTTPStatus

import uvicorn
import vllm
from fastapi import FastAPI
from vllm.entrypoints.openai.chat_completion import api_router as chat_routes
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
    ChatMessage,
)
from vllm.entrypoints.openai.completion import api_router as completion_routes
from vllm.entrypoints.openai.completion.protocol import (
    CompletionResponse,
    CompletionResponseChoice,
    CompletionResponseStreamChoice,
    CompletionStreamResponse,
)
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import UsageInfo

known = json.load(sys.stdin)
USAGE = UsageInfo(prompt_tokens=1, completion_tokens=2, total_tokens=3)


def parts_of(text):
    return re.findall(r"\S+\s*|\s+", text)


async def streamed(request, head, first, choice):
    """Chunks as vLLM writes them; the usage in a last one without a choice, if it was asked for."""
    for chunk in [*first, *(choice(text, None) for text in parts_of(head["text"])), choice("", "stop")]:
        yield f"data: {chunk.model_dump_json(exclude_none=True)}\n\n"
    if request.stream_options and request.stream_options.include_usage:
        usage = head["last"].model_dump_json(exclude_none=True)
        yield f"data: {usage}\n\n"
    yield "data: [DONE]\n\n"


class Completions:
    """Stands where `OpenAIServingCompletion` stands."""

    async def create_completion(self, request, _raw):
        if request.prompt == "fail":
            return create_error_response(message="slow down", err_type="rate_limit", status_code=HTTPStatus.TOO_MANY_REQUESTS)
        text = known.get(request.prompt, request.prompt)
        if not request.stream:
            choice = CompletionResponseChoice(index=0, text=text, finish_reason="stop")
            return CompletionResponse(model=request.model, choices=[choice], usage=USAGE)
        ids = {"id": CompletionStreamResponse(model="m", choices=[]).id, "model": request.model}
        last = CompletionStreamResponse(**ids, choices=[], usage=USAGE)

        def one(words, reason):
            choice = CompletionResponseStreamChoice(index=0, text=words, finish_reason=reason)
            return CompletionStreamResponse(**ids, choices=[choice])

        return streamed(request, {"text": text, "last": last}, [], one)


class Chats:
    """Stands where `OpenAIServingChat` stands."""

    async def create_chat_completion(self, request, _raw):
        prompt = request.messages[-1]["content"]
        text = known.get(prompt, prompt)
        if not request.stream:
            choice = ChatCompletionResponseChoice(index=0, message=ChatMessage(role="assistant", content=text))
            return ChatCompletionResponse(model=request.model, choices=[choice], usage=USAGE)
        ids = {"id": ChatCompletionStreamResponse(model="m", choices=[]).id, "model": request.model}
        last = ChatCompletionStreamResponse(**ids, choices=[], usage=USAGE)

        def one(words, reason, role=None):
            delta = DeltaMessage(role=role, content=words) if role else DeltaMessage(content=words)
            choice = ChatCompletionResponseStreamChoice(index=0, delta=delta, finish_reason=reason)
            return ChatCompletionStreamResponse(**ids, choices=[choice])

        return streamed(request, {"text": text, "last": last}, [one("", None, "assistant")], one)


app = FastAPI()
completion_routes.attach_router(app)
chat_routes.attach_router(app)
app.state.openai_serving_completion = Completions()
app.state.openai_serving_chat = Chats()
listener = socket.create_server(("127.0.0.1", 0))
print(json.dumps({"url": "http://127.0.0.1:%d" % listener.getsockname()[1], "vllm": vllm.__version__}), flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
