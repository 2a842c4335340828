"""How far the recorder is with the topics that it reads."""
