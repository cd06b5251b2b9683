"""What the README's numbers come from: one file per question, each with run() -> (claims, rows)."""
