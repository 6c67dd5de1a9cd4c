"""The byte formats: how requests and answers look on each wire, and how one becomes another.

Everything here is sans-IO: bytes in, bytes out. `edge.DIALECTS` is what the gateway needs of a client's wire,
`codecs.table.CODECS` carries a call to a back end and its answer back, `typed` is the library's view of `openai.chat`.
`codecs.report` writes down what becomes of every field, and which warnings there are.
"""
