"""From problems to experience, and from experience to the loss of a visit."""
