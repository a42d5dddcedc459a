"""What does each local and global mixer cost? README.md has the method."""
