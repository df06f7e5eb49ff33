"""Several runs beside each other: what their folders hold, whether they compare, tables and figures."""
