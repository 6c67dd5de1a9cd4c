"""The facade over HTTP: OpenAI's API and Ollama's own, on one address.

`app` dispatches; the data plane (`inference`) is raw ASGI because it is the hot path; `meta` and `health` answer the
rest. `server` is uvicorn with a graceful drain.
"""
