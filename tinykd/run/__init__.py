"""Runs a model on a device: the protocol, the session, the transports, the bench."""
