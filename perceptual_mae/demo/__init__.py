"""The demo: a page at 127.0.0.1 on which one paints a mask and sees what each run makes of it."""
