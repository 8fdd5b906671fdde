"""From raw media to the records that training reads (Ovi, section 3.1)."""
