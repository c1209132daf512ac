"""Keys and certificates for one migration, made in memory and forgotten with it."""

from __future__ import annotations

import datetime as dt
import secrets
from typing import Final

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cvm_migrate.model import TlsIdentity

SOURCE_NAME: Final = "source.cvm-migrate.invalid"
"""The name of the end that sends, in its certificate; RFC 2606 keeps it out of the DNS."""
TARGET_NAME: Final = "target.cvm-migrate.invalid"
"""The name of the end that receives."""

# Rescue systems often start with a clock that is hours off, or in the wrong time zone.
_CLOCK_SKEW: Final = dt.timedelta(days=1)
_VALID: Final = dt.timedelta(days=30)


@attrs.frozen
class Identities:
    """What the two ends of one migration need to know each other by.

    Attributes:
        source: For the end that sends.
        target: For the end that receives.
        session: 32 random bytes as hex; the receiver writes nothing for a peer that has others.
    """

    source: TlsIdentity
    target: TlsIdentity
    session: str = attrs.field(repr=False)


def mint_identities(*, valid: dt.timedelta = _VALID, now: dt.datetime | None = None) -> Identities:
    """Make a certificate authority, two certificates signed by it, and a session; throw the authority's key away.

    Args:
        valid: How long the certificates are good from *now*; a migration that waits for its cutover needs them
            for new connections all the time. They are good for one day before *now* as well, for clocks that
            are behind.
        now: The present, aware of its zone; by default the system's.

    Returns:
        One identity for each end. No one else can get another, as nothing can sign one any more.
    """
    moment = dt.datetime.now(dt.UTC) if now is None else now
    begin, end = moment - _CLOCK_SKEW, moment + valid
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"cvm-migrate {secrets.token_hex(8)}")]
    )
    ca = (
        x509.CertificateBuilder()
        .subject_name(ca_name)
        .issuer_name(ca_name)
        .public_key(ca_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    ca_pem = ca.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def leaf(name: str, peer: str, usage: x509.ObjectIdentifier) -> TlsIdentity:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        return TlsIdentity(
            ca=ca_pem,
            certificate=certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"),
            key=key.private_bytes(
                serialization.Encoding.PEM,
                # The form that OpenSSL 1.0 and 3 both read.
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode("ascii"),
            peer=peer,
        )

    return Identities(
        source=leaf(SOURCE_NAME, TARGET_NAME, ExtendedKeyUsageOID.CLIENT_AUTH),
        target=leaf(TARGET_NAME, SOURCE_NAME, ExtendedKeyUsageOID.SERVER_AUTH),
        session=secrets.token_hex(32),
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
