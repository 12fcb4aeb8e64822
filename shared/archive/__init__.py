"""Whole days of the stream as Parquet, in a folder or a bucket, each proven by the seals (docs/archive.md)."""
