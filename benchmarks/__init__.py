"""The benchmarks behind the numbers in the documentation: one file per question, each with run() -> (claims, rows)."""
