"""Networks used by stages; weights are provided by the user."""
