"""Well-behaved traffic in a process of its own: `steady.py PORT` asks without a pause that matters, until it is killed.

Prints, for each answer, when it was asked for (monotonic seconds, the same in every process) and how long it took.
"""

import http.client
import sys
import time

BODY = b'{"model":"qwen3:8b","messages":[{"role":"user","content":"words:3"}],"stream":false}'


def main(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while True:
        started = time.monotonic()
        connection.request("POST", "/api/chat", BODY, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        print(started, time.monotonic() - started, response.status, flush=True)
        time.sleep(0.002)


if __name__ == "__main__":
    main(int(sys.argv[1]))
