"""Access: decisions, logins beside predictions, and how fast a revocation is everywhere."""
