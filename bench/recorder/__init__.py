"""How fast the recorder is, against the limit of its database and against a straightforward Faust pipeline."""
