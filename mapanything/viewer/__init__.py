"""The viewer in a browser: a server, a session for each client, and the layers of a frame."""
