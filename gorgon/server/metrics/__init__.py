"""Prometheus series of one server; docs/api.md lists them."""
