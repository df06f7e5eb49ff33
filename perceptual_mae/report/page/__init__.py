"""The report of runs: one self-contained HTML page. Python collects what run folders hold; `assets/` shows it."""
