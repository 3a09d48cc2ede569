"""moto's S3 on a port of the system's choice, one request at a time. Prints its address; ends with its parent or after an hour."""

import os
import sys
import threading
import time

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def main():
    application = DomainDispatcherApplication(create_backend_app)
    # One thread: moto looks whether an object is there and then writes it, in two steps that two threads could mix.
    server = make_server("127.0.0.1", 0, application, threaded=False)
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
