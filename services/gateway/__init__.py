"""The gateway: HTTP in front of NATS. It keeps nothing; what it shows it reads from the stream or asks the registry."""
