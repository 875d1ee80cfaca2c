"""The page on which a network learns a person's signs: what it asks a network, and the server behind it."""
