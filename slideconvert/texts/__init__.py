"""Texts that models read: files, data sets and what a program holds, conversations among them, as tokens."""
