"""What makes leases real in the kernel, and the double that only remembers them."""
