"""The HTTP API: one router per resource, put together in `api.app`."""
