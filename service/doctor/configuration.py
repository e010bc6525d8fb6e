"""Checks of settings that are valid one by one and do not fit together, and of addresses, ports and proxies."""

from __future__ import annotations

import ipaddress
import resource
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from service.api.connections import OTHER_FILES
from service.doctor.finding import Finding, Findings, ok, problem, warning
from service.environment import PREFIX
from service.errors import ConfigurationError
from service.process.ports import bind_port
from service.settings import Settings
from service.tracing import Tracing, receiver_headers, traces_url

HTTP_TIMEOUT_S = 3.0
WIDEST_NETWORK = {4: 8, 6: 16}  # shortest prefix of a network of proxies, by IP version
LIMITS_OF_KEYS = {"requests_per_minute", "max_waiting_per_key", "gpu_seconds_per_day"}


def check_settings(settings: Settings) -> Findings:
    given = sorted(PREFIX + name.upper() for name in settings.model_fields_set)
    yield ok("settings", f"{len(given)} are set: {', '.join(given)}" if given else "all have their defaults")
    try:
        settings.require_auth_on_public_host()
    except ConfigurationError as e:
        yield problem("authentication", e.message)
    else:
        yield from _authentication(settings)
    yield check_key_limits(settings)
    yield from check_trusted_proxies(settings)
    yield from check_environment_proxy(settings)
    yield from check_traces(settings)


def _authentication(settings: Settings) -> Findings:
    if settings.auth == "keys":
        yield ok("authentication", "clients need an API key")
    elif settings.is_loopback:
        yield ok("authentication", "off; only this machine can reach the API")
    else:
        yield warning("authentication", "off, and other machines can reach the API (IVMIX_ALLOW_OPEN)")


def check_key_limits(settings: Settings) -> Finding:
    """Without API keys, their limits have no effect."""
    given = sorted(PREFIX + name.upper() for name in LIMITS_OF_KEYS & settings.model_fields_set)
    if settings.auth == "off" and given:
        message = f"{', '.join(given)} is set, but limits of API keys have no effect while IVMIX_AUTH=off"
        return warning("limits of keys", message, "set IVMIX_AUTH=keys, or remove the limit")
    return ok("limits of keys", ", ".join(given) or "the defaults" if settings.auth == "keys" else "there are no keys")


def check_trusted_proxies(settings: Settings) -> Findings:
    networks = [ipaddress.ip_network(entry) for entry in settings.trusted_proxies]
    wide = [str(network) for network in networks if network.prefixlen < WIDEST_NETWORK[network.version]]
    if wide:
        message = f"IVMIX_TRUSTED_PROXIES has {', '.join(wide)}: clients there can invent their address"
        yield problem("reverse proxy", message, "name the addresses of your proxies only")
        return
    if settings.public_base_url is None:
        yield ok("reverse proxy", "none is announced (IVMIX_PUBLIC_BASE_URL)")
        return
    is_default = all(network.is_loopback for network in networks)
    if is_default and not settings.is_loopback:
        message = "IVMIX_PUBLIC_BASE_URL names a proxy, and IVMIX_TRUSTED_PROXIES only this machine"
        advice = "set it to the proxy's address, otherwise all its clients share the limits of one address"
        yield warning("reverse proxy", message, advice)
    yield check_public_url(settings.client_base_url or "")


def check_public_url(url: str) -> Finding:
    name, advice = "public address", "correct IVMIX_PUBLIC_BASE_URL, IVMIX_ROOT_PATH or the proxy"
    try:
        status = httpx2.get(f"{url}/livez", timeout=HTTP_TIMEOUT_S, trust_env=False, follow_redirects=False).status_code
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as e:
        message = f"{url} cannot be reached from here: {type(e).__name__}"
        return warning(name, message, "that is right if only clients can reach it, or if the API does not run")
    if status == 200:
        return ok(name, f"ivmix answers at {url}")
    return problem(name, f"{url}/livez is answered with {status}, not by ivmix", advice)


def check_environment_proxy(settings: Settings) -> Findings:
    """boto3 and the downloads of models use the proxy of the environment; webhooks and processes among each other do
    not."""
    proxies = {kind: url for kind, url in getproxies().items() if kind in ("http", "https")}
    if not proxies:
        yield ok("outgoing proxy", "none (HTTP_PROXY, HTTPS_PROXY)")
        return
    if settings.storage == "s3":
        endpoint = urlsplit(settings.s3_endpoint_url or "https://s3.amazonaws.com")
        host = endpoint.hostname or ""
        if endpoint.scheme in proxies and not proxy_bypass(host) and _is_internal(host):
            message = f"requests to the storage at {host} go through {_address(proxies[endpoint.scheme])}"
            yield problem("outgoing proxy", message, f"add {host} to NO_PROXY")
            return
    used = ", ".join(sorted({_address(url) for url in proxies.values()}))
    yield ok("outgoing proxy", f"S3 and downloads of models use {used}; webhooks do not")


def check_traces(settings: Settings) -> Findings:
    """The libraries of the extra, and a receiver that answers; the request has no spans."""
    endpoint = settings.otlp_endpoint
    if endpoint is None:
        return
    try:
        Tracing(endpoint).close()
        headers = receiver_headers() | {"content-type": "application/x-protobuf"}
        reply = httpx2.post(traces_url(endpoint), headers=headers, timeout=HTTP_TIMEOUT_S)
    except ConfigurationError as e:
        yield problem("traces", e.message)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as e:
        message = f"no receiver answers at IVMIX_OTLP_ENDPOINT ({type(e).__name__}); spans are dropped"
        yield warning("traces", message, "start it, or correct the setting")
    else:
        if reply.is_success:
            yield ok("traces", "the OTLP receiver accepts spans")
        else:
            message = f"the receiver at IVMIX_OTLP_ENDPOINT answers with {reply.status_code}"
            yield problem("traces", message, "correct it, or OTEL_EXPORTER_OTLP_HEADERS")


def _is_internal(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".svc"))


def _address(url: str) -> str:
    """Without user and password."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def check_ports(settings: Settings) -> Findings:
    names = ("port", "metrics_port", "worker_metrics_port", "webhook_metrics_port")
    wanted = {PREFIX + name.upper(): getattr(settings, name) for name in names if getattr(settings, name)}
    seen: dict[int, str] = {}
    for variable, port in wanted.items():
        if port in seen:
            yield problem("ports", f"{variable} and {seen[port]} are both {port}", "give each its own port")
        elif (finding := _check_port(settings.host, port, variable)) is not None:
            yield finding
        seen[port] = variable


def _check_port(host: str, port: int, variable: str) -> Finding | None:
    try:
        sockets = bind_port(host, port, variable)
    except ConfigurationError as e:
        if "in use" not in e.message:
            return problem("ports", e.message)
        if _is_ours(host, port):
            return ok("ports", f"{variable}={port}: ivmix answers there")
        return problem("ports", f"{variable}={port} on {host} is used by another program", "choose another or stop it")
    for s in sockets:
        s.close()
    return ok("ports", f"{variable}={port} is free")


def _is_ours(host: str, port: int) -> bool:
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)  # noqa: S104  compared only
    address = f"[{address}]" if ":" in address and not address.startswith("[") else address
    for path, expected in (("/livez", '"status"'), ("/metrics", "ivmix_")):
        try:
            reply = httpx2.get(f"http://{address}:{port}{path}", timeout=HTTP_TIMEOUT_S, trust_env=False)
        except (httpx2.HTTPError, OSError):
            continue
        if reply.status_code == 200 and expected in reply.text:
            return True
    return False


def check_open_files(settings: Settings) -> Findings:
    needed = 2 * settings.max_connections + OTHER_FILES  # a download has a file besides its connection
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        message = f"this user may open {hard} files; IVMIX_MAX_CONNECTIONS={settings.max_connections} needs {needed}"
        yield warning("open files", message, "raise the limit (ulimit -n, LimitNOFILE), or lower the setting")
    else:
        yield ok("open files", f"the limit is {'none' if hard == resource.RLIM_INFINITY else hard}")
