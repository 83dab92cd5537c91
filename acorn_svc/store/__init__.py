"""What the service keeps: rows in one SQLite file, files in one folder."""
