"""Galleries that are searched: pictures described once, kept by a database, filtered and ranked."""
