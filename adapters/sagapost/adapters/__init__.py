"""Adapters of the ports: brokers and databases."""
