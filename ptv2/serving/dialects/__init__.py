"""The requests and answers of other servers' clients."""
