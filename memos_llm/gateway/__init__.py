"""The facade over HTTP: OpenAI's API and Ollama's own, on one address.

`app` lets in (`entry`, `auth`, `rights`, under `rules`) and dispatches. The data plane (`inference`, with one `Work`
per kind of request: `dialogue`, `passage`) is raw ASGI because it is the hot path; `meta`, `health`, `gpu` and `admin`
answer the rest. `server` is uvicorn with a graceful drain.
"""
