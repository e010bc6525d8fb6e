"""The HTTP API: the wire format of OpenAI's Videos API, plus extensions."""
