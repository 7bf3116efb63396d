"""Pure maths: poses, cameras, rotations and the z-buffer. Knows no files; NumPy everywhere, torch where models need it."""
