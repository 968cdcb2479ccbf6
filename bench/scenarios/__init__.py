"""What is measured, one file each: a title, and `scenario(bench)` that finds a section of figures."""
