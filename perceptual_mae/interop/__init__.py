"""Other projects' masked autoencoders and encoders: their files become runs, and runs become their files."""
