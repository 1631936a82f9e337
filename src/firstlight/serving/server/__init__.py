"""The HTTP API (extra ``serve``): :func:`firstlight.serving.server.app.create_app` makes it."""
