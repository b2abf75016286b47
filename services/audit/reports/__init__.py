"""What a privacy officer asks of the record. Pure: rows in, answers out."""
