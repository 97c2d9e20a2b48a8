"""The state database: SQLite for one process, PostgreSQL for several."""
