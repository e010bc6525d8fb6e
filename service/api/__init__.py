"""The HTTP face of the service: the wire format of OpenAI's Videos API, plus extensions.

app           create_app(services): one application, nothing global
auth          who is asking: key -> owner, scopes, limits
limits        requests per minute
creation      POST /v1/videos, remix
sync          POST /v1/videos/sync: create and wait
videos        status, list, delete, cancel, download
polls         status polls that arrive together, looked up together
events        GET /v1/videos/{id}/events: progress as server-sent events
models        /v1/models
queue_report  /v1/queue
content       the bytes of a film: redirect, or stream with ranges
bodies        what comes in: JSON, multipart, urlencoded
answers       what goes out: Video and the other objects
held          requests held open: how many, and when they must end
problems      every error as {"error": {message, type, param, code}}, from one table
webhook_routes  /v1/webhook_...: endpoints, deliveries, secrets
webhook_bodies  what comes in and goes out there, and the payload of an event
health        /livez, /readyz
metrics       /metrics
docs          /docs
contract      the OpenAPI description of all this
openapi       the same as text: python -m service.api.openapi
"""
