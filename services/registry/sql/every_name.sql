-- Which tables and views, the engine's own among them, does a name without a schema mean?
select table_name from duckdb_tables()
union
select view_name from duckdb_views()
