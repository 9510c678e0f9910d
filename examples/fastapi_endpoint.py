"""An endpoint of FastAPI that streams answers; all requests share one model.

Run it: pip install fastapi uvicorn; python examples/fastapi_endpoint.py smollm2.lepton
Try it: curl -N localhost:8000/generate -H 'Content-Type: application/json' -d '{"prompt": "Why is the sky blue?"}'
"""

import sys
from collections.abc import Iterator

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

import runtime_edge
from runtime_edge import Chunk, LeptonError, Model


class Request(BaseModel):
    """What a client sends."""

    prompt: str
    max_new_tokens: int = Field(200, ge=1, le=1000)


def application(model: Model) -> FastAPI:
    """Returns the application. Requests share the weights; each has a context, so that none waits for another."""
    app = FastAPI()

    @app.post("/generate")
    def generate(request: Request) -> StreamingResponse:
        try:  # the request is checked here, before anything is sent
            messages = [{"role": "user", "content": request.prompt}]
            chunks = model.context().stream(messages, max_new_tokens=request.max_new_tokens, timeout=60)
        except LeptonError as error:
            raise HTTPException(422, str(error)) from error
        return StreamingResponse(texts(chunks), media_type="text/plain; charset=utf-8")

    return app


def texts(chunks: Iterator[Chunk]) -> Iterator[str]:
    """Yields the texts; a client that leaves ends it, which ends the answer."""
    for chunk in chunks:
        yield chunk.text


if __name__ == "__main__":
    import uvicorn

    with runtime_edge.load(sys.argv[1]) as model:
        uvicorn.run(application(model))
