"""Errors whose type says whose fault it was: the file, the pod's packet, the upstream's packet, or the kernel."""

from __future__ import annotations


class DnsguardError(Exception):
    """Base of every error that dnsguard raises on purpose; its text is fit for an operator."""


class InvalidNameError(DnsguardError):
    """A domain name or pattern that cannot be used; the text says what to write instead."""


class PolicyError(DnsguardError):
    """A policy that cannot be compiled (for example more than 64 merged rules)."""


class UpstreamError(DnsguardError):
    """An upstream's packet that must not be believed; `reason` is a metric label."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class KernelError(DnsguardError):
    """The kernel refused, or its state is not what it should be; the text says what was asked."""


class MissingFeatureError(DnsguardError):
    """A privilege or kernel feature that is not there (exit code 77); the text names it and the remedy."""


class OldKernelError(MissingFeatureError):
    """This kernel cannot do it, whatever privileges and settings it is asked with."""
