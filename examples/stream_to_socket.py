"""A server on a TCP socket: a client sends a line, and receives the answer piece by piece.

Run it: python examples/stream_to_socket.py smollm2.lepton 7777     and elsewhere: nc localhost 7777
"""

import sys
from contextlib import closing, suppress
from socketserver import StreamRequestHandler, ThreadingTCPServer

import runtime_edge
from runtime_edge import LeptonError, Model


class Server(ThreadingTCPServer):
    """A thread a client; the port can be taken again at once, and a client does not keep the program from ending."""

    allow_reuse_address = True
    daemon_threads = True


def server(model: Model, port: int) -> Server:
    """Returns a server whose clients share the model, which makes one answer at a time."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            text = self.rfile.readline(65536).decode("utf-8", "replace").strip()
            # A client that leaves breaks the pipe. Closing the stream ends the answer; the next client has its turn.
            with suppress(ConnectionError):
                try:
                    messages = [{"role": "user", "content": text}]
                    with closing(model.stream(messages, max_new_tokens=300)) as chunks:
                        for chunk in chunks:
                            self.wfile.write(chunk.text.encode())
                except LeptonError as error:  # such as a text that is too long
                    self.wfile.write(f"error: {error}\n".encode())

    return Server(("localhost", port), Handler)


def main(artifact: str, port: int) -> None:
    """Serves until it is interrupted."""
    with runtime_edge.load(artifact) as model, server(model, port) as serving, suppress(KeyboardInterrupt):
        print(f"listening on port {serving.server_address[1]}", flush=True)
        serving.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 7777)
