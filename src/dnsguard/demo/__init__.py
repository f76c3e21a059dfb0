"""Namespaces that stand for pods and the outside world, and the demonstration that runs in them."""
