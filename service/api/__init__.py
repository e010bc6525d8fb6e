"""The HTTP face of the service: the wire format of OpenAI's Videos API, plus extensions.

app       create_app(services): one application, nothing global
routes    /v1/videos and /v1/models
content   GET /v1/videos/{id}/content: redirect, or stream with ranges
auth      who is asking
webhook_routes  /v1/webhook_...: endpoints, deliveries, secrets
webhook_bodies  what comes in and goes out there, and the payload of an event
bodies    what comes in (JSON, multipart, urlencoded) and the Video that goes out
problems  every error as {"error": {message, type, param, code}}, from one table
health    /livez, /readyz
contract  the OpenAPI description of all this
openapi   the same as text: python -m service.api.openapi
"""
