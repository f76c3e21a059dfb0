"""Where policy comes from: the allowlist file, read and checked in a child process."""
