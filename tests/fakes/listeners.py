"""Who answers on a port: whether an address is loopback, and how Ray's gRPC treats a caller without
the token."""

from __future__ import annotations

import ipaddress
import subprocess
import sys

import grpc

GRPC_METHODS = (
    "/ray.serve.ASGIService/HandleRequest",  # of replicas
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
)


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    return bool((mapped or ip).is_loopback)


def codes(port: int) -> set[grpc.StatusCode]:
    """How a gRPC port answers a caller without token.

    It is asked by a process of its own, again if that dies: where something else than gRPC answers,
    gRPC's client may abort its whole process (`call_combiner.cc: Check failed`).
    """
    for _ in range(3):
        caller = subprocess.run(
            [sys.executable, __file__, str(port)], capture_output=True, text=True, check=False
        )
        if caller.returncode == 0:
            return {grpc.StatusCode[name] for name in caller.stdout.split()}
    raise RuntimeError(f"nobody could ask port {port}: {caller.stderr}")


def ask(port: int) -> set[grpc.StatusCode]:
    """The same, asked by this process."""
    found = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in GRPC_METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=5)
                found.add(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                found.add(error.code())
    return found


def wants_the_token(port: int) -> bool:
    """Whether it refused, and did nothing that was asked."""
    answers = codes(port)
    return grpc.StatusCode.UNAUTHENTICATED in answers and grpc.StatusCode.OK not in answers


if __name__ == "__main__":
    print(*(code.name for code in ask(int(sys.argv[1]))))
