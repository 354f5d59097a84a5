"""What people and their machines see of a deployment: status and its reasons, logs, metrics, health."""
