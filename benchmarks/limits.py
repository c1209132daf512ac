"""What this machine can do at most: reading, writing, all of a proven copy's I/O at once, sending with and without TLS."""

from __future__ import annotations

import datetime as dt
import mmap
import multiprocessing
import os
import socket
import ssl
import threading
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

MiB = 1 << 20


def read_rate(device: Path, size: int) -> float:
    """MiB/s of O_DIRECT reads of 1 MiB, one after another."""
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MiB) as buffer:
            start = time.monotonic()
            for offset in range(0, size, MiB):
                os.preadv(fd, [buffer], offset)
            return size / MiB / (time.monotonic() - start)
    finally:
        os.close(fd)


def write_rate(device: Path, size: int) -> float:
    """MiB/s of O_DIRECT writes of 1 MiB of noise, flushed at the end."""
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MiB) as buffer:
            buffer.write(os.urandom(MiB))
            start = time.monotonic()
            for offset in range(0, size, MiB):
                os.pwritev(fd, [buffer], offset)
            os.fdatasync(fd)
            return size / MiB / (time.monotonic() - start)
    finally:
        os.close(fd)


def copy_seconds(source: Path, target: Path, size: int, folder: Path) -> float:
    """Seconds for what a proven copy asks of a machine that is source and target, all at once and in no order.

    The source is read whole by two threads; half of the target, as much as is not zeroes, is written and read back, and
    as much goes through one TLS connection from process to process.
    """
    failed: list[OSError] = []

    def transfer(device: Path, begin: int, end: int, mode: int) -> None:
        try:
            fd = os.open(device, mode | os.O_DIRECT)
            try:
                with mmap.mmap(-1, MiB) as buffer:
                    buffer.write(os.urandom(MiB))
                    for offset in range(begin, end, MiB):
                        if mode == os.O_WRONLY:
                            os.pwritev(fd, [buffer], offset)
                        else:
                            os.preadv(fd, [buffer], offset)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            failed.append(error)

    half = size // 2
    # What is read back was written before the clock starts, as holes cost nothing to read.
    transfer(target, half, size, os.O_WRONLY)
    work = [
        (source, 0, half, os.O_RDONLY),
        (source, half, size, os.O_RDONLY),
        (target, 0, half, os.O_WRONLY),
        (target, half, size, os.O_RDONLY),
    ]
    threads = [threading.Thread(target=transfer, args=one) for one in work]
    threads.append(threading.Thread(target=_sending, args=(folder, half)))
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    if failed:
        raise failed[0]
    return seconds


def _sending(folder: Path, size: int) -> None:
    send_rate(folder, size, tls=True)


def _identity(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = folder / "limits.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


def _sink(listener: socket.socket, pem: str | None) -> None:
    connection, _ = listener.accept()
    if pem:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        connection = context.wrap_socket(connection, server_side=True)
    buffer = memoryview(bytearray(MiB))
    while connection.recv_into(buffer):
        pass
    connection.close()


def send_rate(folder: Path, size: int, *, tls: bool) -> float:
    """MiB/s from one process to another over loopback, one connection."""
    pem = _identity(folder) if tls else None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = multiprocessing.get_context("fork").Process(
            target=_sink, args=(listener, str(pem) if pem else None)
        )
        receiver.start()
        connection = socket.create_connection(listener.getsockname())
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection = context.wrap_socket(connection)
        data = os.urandom(MiB)
        start = time.monotonic()
        for _ in range(size // MiB):
            connection.sendall(data)
        connection.close()
        receiver.join()
        return size / MiB / (time.monotonic() - start)
