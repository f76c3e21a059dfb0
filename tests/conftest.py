"""What holds for every test: how long an example takes fails none (timing is for benchmarks)."""

from hypothesis import settings

settings.register_profile("dnsguard", deadline=None)
settings.load_profile("dnsguard")
