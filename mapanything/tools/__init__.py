"""Command lines, one file each: `python -m mapanything.tools.NAME --help`. Nothing else imports them."""
