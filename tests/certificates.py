"""Creates a certificate authority for tests, a server certificate for localhost, and one for a client."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY = "ivmix test authority"
LOOPBACK = ipaddress.ip_address("127.0.0.1")


@dataclass(frozen=True)
class Certificates:
    """Paths of the authority's certificate, and of certificate and key of the server and of a client."""

    authority: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]

    @classmethod
    def make(cls, folder: Path, *, valid_for: timedelta = timedelta(days=1)) -> Certificates:
        """`valid_for` is that of the server's certificate; if negative, it has expired."""
        folder.mkdir(parents=True, exist_ok=True)
        root_key = ec.generate_private_key(ec.SECP256R1())
        root = (
            _certificate(AUTHORITY, AUTHORITY, root_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), critical=False)
            .sign(root_key, hashes.SHA256())
        )
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(LOOPBACK)])
        server, client = (
            _write(folder / who, *_leaf(f"ivmix test {who}", root_key, purpose, names, valid_for))
            for who, purpose in (
                ("server", ExtendedKeyUsageOID.SERVER_AUTH),
                ("client", ExtendedKeyUsageOID.CLIENT_AUTH),
            )
        )
        made = cls(folder / "authority.pem", server, client)
        made.authority.write_bytes(root.public_bytes(serialization.Encoding.PEM))
        return made

    def context(self) -> ssl.SSLContext:
        """TLS context of a client that trusts only this authority."""
        return ssl.create_default_context(cafile=str(self.authority))


def _leaf(
    subject: str,
    root_key: ec.EllipticCurvePrivateKey,
    purpose: x509.ObjectIdentifier,
    names: x509.SubjectAlternativeName,
    valid_for: timedelta,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _certificate(subject, AUTHORITY, key.public_key(), valid_for)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    return certificate, key


def _write(path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> tuple[Path, Path]:
    """Paths of certificate and key."""
    files = path.with_suffix(".pem"), path.with_suffix(".key")
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    return files


def _certificate(
    subject: str, issuer: str, key: ec.EllipticCurvePublicKey, valid_for: timedelta = timedelta(days=1)
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + valid_for)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
