"""Federated algorithms: the server half and the local work it asks for; one file each."""
