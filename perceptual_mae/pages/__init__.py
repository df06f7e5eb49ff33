"""Pages of one HTML file each, and the server that shows them to this machine alone."""
