"""Broken model files, made from whole ones by seeded mutations, and a process that reads them under limits."""
