"""A service that makes clips on request, and keeps what was asked for."""
