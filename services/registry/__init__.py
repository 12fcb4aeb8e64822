"""The registry: folds every event into DuckDB and answers what people ask after the fact. It says nothing itself."""
