"""moto's S3 on a port of the system's choice, one request at a time. Prints its address; ends with its parent or after an hour.

With --connections many clients may hold connections open that they do not use; requests still come one at a time.
"""

import os
import sys
import threading
import time

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def one_at_a_time(application):
    """The application, its answers made whole under a lock."""
    lock = threading.Lock()

    def answer(environ, start_response):
        with lock:
            body = application(environ, start_response)
            try:
                return [b"".join(body)]
            finally:
                getattr(body, "close", lambda: None)()

    return answer


def main():
    application = DomainDispatcherApplication(create_backend_app)
    # One thread: moto looks whether an object is there and then writes it, in two steps that two threads could mix.
    threaded = "--connections" in sys.argv[1:]
    server = make_server("127.0.0.1", 0, one_at_a_time(application) if threaded else application, threaded=threaded)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    parent = os.getppid()

    def watch():
        end = time.monotonic() + 3600
        while os.getppid() == parent and time.monotonic() < end:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
