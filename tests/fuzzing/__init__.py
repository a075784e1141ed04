"""Random models: how to draw them, what must hold for each, and the file that keeps one that broke it."""
