"""The control socket: a table of calls served over HTTP on a unix socket, and its client."""
